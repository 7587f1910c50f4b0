-- What a step has done, in the step's own transaction.
-- $1 uuid id · $2 integer tasks changed · $3 integer tasks skipped · $4 uuid the last task seen to
-- $5 float8 seconds until the next step · $6 uuid[] the wave to watch, or NULL for the same as before
UPDATE dhara.operations AS o
SET done = o.done + $2, skipped = o.skipped + $3, after_id = $4, updated_at = clock_timestamp(),
    total = GREATEST(o.total, o.done + o.skipped + $2 + $3), due_at = clock_timestamp() + $5 * interval '1 second',
    wave = COALESCE($6::uuid[], o.wave),
    wave_at = CASE WHEN $6::uuid[] IS NULL THEN o.wave_at ELSE clock_timestamp() END
WHERE id = $1

-- The end of an operation. An operator's stop is put on record as an action.
-- $1 uuid id · $2 text state: done, stopped or failed · $3 text reason · $4 text by whom, or NULL for by itself
WITH ended AS (
    UPDATE dhara.operations
    SET state = $2, reason = $3, finished_at = clock_timestamp(), updated_at = clock_timestamp(), wave = '{}',
        total = CASE WHEN $2 = 'done' THEN done + skipped ELSE total END,
        total_is_estimate = total_is_estimate AND $2 <> 'done'
    WHERE id = $1 AND state = 'running'
    RETURNING *
), audited AS (
    INSERT INTO dhara.audit_log (actor, action, target, before, after)
    SELECT $4, 'operation.stop', id::text, json_build_object('state', 'running'),
           json_build_object('state', state, 'done', done, 'skipped', skipped)
    FROM ended WHERE $4::text IS NOT NULL
)
SELECT * FROM ended

-- An enqueue meets the PENDING task of its unique key: take over its content ($2 true), or only its time (false: debounce).
-- Answers the row as it is now; none if it is PENDING no longer.
-- $1 uuid id · $2 boolean · $3 text payload (JSON) · $4 text queue · $5 smallint priority · $6 smallint max_retries
-- $7 timestamptz run_at · $8 float8 delay in seconds (both NULL: now)
WITH found AS (
    SELECT id, queue FROM dhara.tasks WHERE id = $1 AND status = 'PENDING' AND unique_slot IS NOT NULL FOR UPDATE
), changed AS (
    UPDATE dhara.tasks AS t
    SET run_at = GREATEST(COALESCE($7, clock_timestamp() + $8 * interval '1 second'), clock_timestamp()),
        payload = CASE WHEN $2 THEN $3::text::json ELSE t.payload END,
        queue = CASE WHEN $2 THEN $4 ELSE t.queue END,
        priority = CASE WHEN $2 THEN $5 ELSE t.priority END,
        max_retries = CASE WHEN $2 THEN $6 ELSE t.max_retries END,
        updated_at = clock_timestamp()
    FROM found WHERE t.id = found.id
    RETURNING t.*, found.queue AS old_queue
), logged AS (
    INSERT INTO dhara.task_history (task_id, generation, attempt, event)
    SELECT id, generation, attempts, CASE WHEN $2 THEN 'REPLACED' ELSE 'RESCHEDULED' END FROM changed
), counted AS (
    INSERT INTO dhara.counters (n, queue, event, from_state, to_state)
    SELECT 1, old_queue, 'MOVED', 'PENDING', NULL FROM changed WHERE queue <> old_queue
    UNION ALL
    SELECT 1, queue, 'MOVED', NULL, 'PENDING' FROM changed WHERE queue <> old_queue
)
SELECT * FROM changed

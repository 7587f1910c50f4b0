-- PENDING tasks whose expires_at has passed: DEAD without a run.
-- $1 integer most tasks
WITH found AS (
    SELECT id FROM dhara.tasks WHERE status = 'PENDING' AND expires_at <= statement_timestamp()
    ORDER BY expires_at LIMIT $1 FOR UPDATE SKIP LOCKED
), expired AS (
    UPDATE dhara.tasks AS t
    SET status = 'DEAD', reason = 'expired', fingerprint = md5(t.type || ':expired'),
        unique_slot = CASE WHEN t.unique_scope = 'period' THEN t.unique_slot END,
        completed_at = clock_timestamp(), updated_at = clock_timestamp()
    FROM found WHERE t.id = found.id
    RETURNING t.id, t.queue, t.generation, t.attempts
), logged AS (
    INSERT INTO dhara.task_history (task_id, generation, attempt, event, reason)
    SELECT id, generation, attempts, 'EXPIRED', 'expired' FROM expired
), counted AS (
    INSERT INTO dhara.counters (n, queue, event, from_state, to_state)
    SELECT count(*), queue, 'EXPIRED', 'PENDING', 'DEAD' FROM expired GROUP BY queue
)
SELECT id FROM expired

-- Revive many: DEAD -> PENDING, as `tasks/revive.sql` does with one. Tasks whose unique key another open task holds stay
-- DEAD; of several with one key the first is taken.
-- $1 uuid[] ids · $2 text reason
WITH found AS (
    SELECT t.id, t.type, t.unique_key, t.unique_scope FROM dhara.tasks AS t
    WHERE t.id = ANY ($1::uuid[]) AND t.status = 'DEAD' ORDER BY t.id FOR UPDATE
), free AS (
    SELECT id FROM (
        SELECT f.id, f.unique_key IS NULL OR f.unique_scope = 'period' AS keyless,
               row_number() OVER (PARTITION BY f.type, f.unique_key ORDER BY f.id) AS nth,
               EXISTS (SELECT FROM dhara.tasks AS o WHERE o.type = f.type AND o.unique_slot = f.unique_key) AS taken
        FROM found AS f) AS f
    WHERE keyless OR (nth = 1 AND NOT taken)
), revived AS (
    UPDATE dhara.tasks AS t
    SET status = 'PENDING', generation = t.generation + 1, failures = 0, crashes = 0, snoozes = 0,
        run_at = clock_timestamp(), updated_at = clock_timestamp(), completed_at = NULL,
        lease = NULL, locked_by = NULL, claim_seq = NULL, cancel_requested_at = NULL,
        expires_at = CASE WHEN t.expires_at > clock_timestamp() THEN t.expires_at END,
        reason = NULL, fingerprint = NULL,
        unique_slot = CASE WHEN t.unique_scope = 'period' THEN t.unique_slot ELSE t.unique_key END
    FROM free WHERE t.id = free.id
    RETURNING t.id, t.queue, t.generation, t.attempts
), logged AS (
    INSERT INTO dhara.task_history (task_id, generation, attempt, event, reason)
    SELECT id, generation, attempts, 'REVIVED', $2 FROM revived
), counted AS (
    INSERT INTO dhara.counters (n, queue, event, from_state, to_state)
    SELECT count(*), queue, 'REVIVED', 'DEAD', 'PENDING' FROM revived GROUP BY queue
)
SELECT id, queue FROM revived

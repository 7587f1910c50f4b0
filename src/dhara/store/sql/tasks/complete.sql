-- Complete ended attempts that have nothing to say but their result: what most settlements are, at two thirds of the cost of
-- `settle.sql`, which means the same for these. Guarded by lease: RUNNING -> COMPLETED, row and history in one statement.
-- Answers one row: how many were accepted and, only if some were not, the accepted leases.
-- $1 uuid[] ids · $2 uuid[] leases · $3 text[] results (JSON)
WITH given AS MATERIALIZED (
    -- Rows are locked in this order: two settlements of the same rows, one of them a repetition, never deadlock.
    SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::text[]) AS s (id, lease, result) ORDER BY s.id
), settled AS (
    UPDATE dhara.tasks AS t
    SET status = 'COMPLETED', completed_at = clock_timestamp(), updated_at = clock_timestamp(), result = s.result::json,
        reason = NULL, fingerprint = NULL, logs = NULL,
        -- A unique key keeps others out until the task is final, or for its period.
        unique_slot = CASE WHEN t.unique_scope = 'period' THEN t.unique_slot END
    FROM given AS s
    -- A CASE, so that the planner cannot take the index of RUNNING tasks, of whose size it never knows.
    WHERE t.id = s.id AND CASE WHEN t.lease = s.lease THEN t.status = 'RUNNING' END
    RETURNING t.id, t.lease, t.locked_by, t.claim_seq, t.started_at, t.generation, t.attempts, t.queue
), logged AS (
    INSERT INTO dhara.task_history (task_id, lease, worker_id, claim_seq, claimed_at, generation, attempt, event)
    SELECT id, lease, locked_by, claim_seq, started_at, generation, attempts, 'COMPLETED' FROM settled
), counted AS (
    INSERT INTO dhara.counters (n, queue, event, from_state, to_state)
    SELECT count(*), queue, 'COMPLETED', 'RUNNING', 'COMPLETED' FROM settled GROUP BY queue
)
SELECT count(*) AS accepted, CASE WHEN count(*) < cardinality($1) THEN array_agg(lease) END AS leases FROM settled

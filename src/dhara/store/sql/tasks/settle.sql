-- Settle ended attempts, guarded by lease: RUNNING -> what the outcome means, row and history in one statement.
-- Answers the leases that were accepted; a lease that is missing was stale and has changed nothing.
-- $1 uuid[] ids · $2 uuid[] leases · $3 text[] events · $4 float8[] delays in seconds (for a return to PENDING)
-- $5 smallint[] failures to add · $6 text[] results (JSON) · $7 text[] reasons · $8 text[] last errors
-- $9 text[] errors (JSON) · $10 text[] log lines (JSON) · $11 text[] fingerprints · $12 smallint[] crashes to add
-- $13 text[] progress (JSON)
WITH given AS (
    SELECT s.*, CASE s.event WHEN 'COMPLETED' THEN 'COMPLETED' WHEN 'CANCELED' THEN 'CANCELED' WHEN 'DEAD' THEN 'DEAD'
                ELSE 'PENDING' END AS to_state
    FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::float8[], $5::smallint[], $6::text[], $7::text[], $8::text[],
                $9::text[], $10::text[], $11::text[], $12::smallint[], $13::text[])
         AS s (id, lease, event, delay, failed, result, reason, last_error, error, logs, fingerprint, crashed, progress)
    -- Rows are locked in this order: two settlements of the same rows, one of them a repetition, never deadlock.
    ORDER BY s.id
), settled AS (
    UPDATE dhara.tasks AS t
    SET -- A task whose cancellation was asked for is never tried again: any non-success means CANCELED.
        status = CASE WHEN s.to_state <> 'COMPLETED' AND t.cancel_requested_at IS NOT NULL THEN 'CANCELED' ELSE s.to_state END,
        run_at = CASE WHEN s.to_state = 'PENDING' THEN clock_timestamp() + s.delay * interval '1 second' ELSE t.run_at END,
        completed_at = CASE WHEN s.to_state <> 'PENDING' OR t.cancel_requested_at IS NOT NULL THEN clock_timestamp() END,
        updated_at = clock_timestamp(),
        failures = t.failures + s.failed, crashes = t.crashes + s.crashed,
        snoozes = t.snoozes + (s.event = 'SNOOZED' AND t.cancel_requested_at IS NULL)::int::smallint,
        result = COALESCE(s.result::json, t.result),
        reason = CASE WHEN s.to_state <> 'COMPLETED' THEN COALESCE(s.reason, t.reason) END, fingerprint = s.fingerprint,
        last_error = COALESCE(s.last_error, t.last_error),
        progress = COALESCE(s.progress::json, t.progress), logs = NULL,
        -- A unique key keeps others out until the task is final, or for its period.
        unique_slot = CASE WHEN t.unique_scope = 'period' OR (s.to_state = 'PENDING' AND t.cancel_requested_at IS NULL)
                           THEN t.unique_slot END
    FROM given AS s
    -- A CASE, so that the planner cannot take the index of RUNNING tasks, of whose size it never knows.
    WHERE t.id = s.id AND CASE WHEN t.lease = s.lease THEN t.status = 'RUNNING' END
    RETURNING t.id, t.lease, t.locked_by, t.claim_seq, t.started_at, t.generation, t.attempts, t.queue, t.status,
              CASE WHEN t.status = 'CANCELED' THEN 'CANCELED' ELSE s.event END AS event, s.reason, s.error, s.logs
), logged AS (
    INSERT INTO dhara.task_history (task_id, lease, worker_id, claim_seq, claimed_at, generation, attempt, event, reason, error, logs)
    SELECT id, lease, locked_by, claim_seq, started_at, generation, attempts, event, reason, error::json, logs::json
    FROM settled
), counted AS (
    INSERT INTO dhara.counters (n, queue, event, from_state, to_state)
    SELECT count(*), queue, event, 'RUNNING', status FROM settled GROUP BY queue, event, status
)
SELECT lease, status, event FROM settled

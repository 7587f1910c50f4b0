-- Take back what a lost or crashed worker holds: RUNNING -> PENDING, DEAD or CANCELED, a failure and a crash each.
-- Guards: the worker's beat has not moved since the witness saw it ($2; NULL when the keeper itself saw the crash),
-- and each task was claimed at least $3 seconds ago, so that a claim of a worker that just returned is left alone.
-- $1 uuid worker · $2 bigint beat_seq or NULL · $3 float8 seconds · $4 integer most tasks · $5 text reason
-- $6 float8 base and $7 float8 cap of the backoff, seconds · $8 uuid[] culprits: leases to blame; NULL: all are suspects.
-- Others are released without blame.
WITH worker AS (
    -- The lock makes a beat that arrives now wait, and a beat that arrived before is seen.
    SELECT id FROM dhara.workers WHERE id = $1 AND ($2::bigint IS NULL OR beat_seq = $2) FOR UPDATE
), found AS (
    -- What is judged below is the row as the lock saw it, not as the snapshot did: a cancellation may have come between.
    SELECT t.id, t.cancel_requested_at, t.crashes, t.failures, t.max_retries, t.logs,
           $8::uuid[] IS NULL OR t.lease = ANY ($8::uuid[]) AS blamed
    FROM dhara.tasks AS t JOIN worker ON t.locked_by = worker.id
    WHERE t.locked_by = $1 AND t.status = 'RUNNING' AND t.started_at <= clock_timestamp() - $3 * interval '1 second'
    ORDER BY t.id LIMIT $4
    FOR UPDATE OF t SKIP LOCKED
), judged AS (
    SELECT id, blamed, logs,
           CASE WHEN cancel_requested_at IS NOT NULL THEN 'CANCELED'
                WHEN NOT blamed THEN 'RELEASED'
                WHEN crashes + 1 >= 3 OR failures + 1 > max_retries THEN 'DEAD'
                ELSE 'REAPED' END AS event,
           CASE WHEN cancel_requested_at IS NOT NULL OR NOT blamed THEN NULL
                WHEN crashes + 1 >= 3 THEN 'poison'
                WHEN failures + 1 > max_retries THEN 'exhausted' END AS dead_reason
    FROM found
), reaped AS (
    UPDATE dhara.tasks AS t
    SET status = CASE WHEN j.event IN ('CANCELED', 'DEAD') THEN j.event ELSE 'PENDING' END,
        failures = t.failures + j.blamed::int::smallint, crashes = t.crashes + j.blamed::int::smallint,
        run_at = CASE WHEN j.event = 'RELEASED' THEN clock_timestamp()
                      -- At once the first time, spread over a second so that a herd does not return as one; then backoff.
                      WHEN j.event = 'REAPED' THEN clock_timestamp() + interval '1 second' *
                          CASE WHEN t.crashes = 0 THEN random()
                               ELSE LEAST($7, $6 * 2 ^ t.failures) * (0.5 + random()) END
                      ELSE t.run_at END,
        unique_slot = CASE WHEN t.unique_scope = 'period' OR j.event NOT IN ('CANCELED', 'DEAD') THEN t.unique_slot END,
        logs = NULL,
        completed_at = CASE WHEN j.event IN ('CANCELED', 'DEAD') THEN clock_timestamp() END,
        updated_at = clock_timestamp(),
        reason = CASE j.event WHEN 'DEAD' THEN j.dead_reason ELSE NULL END,
        fingerprint = CASE WHEN j.event = 'DEAD' THEN md5(t.type || ':' || j.dead_reason || ':' || $5) END,
        last_error = CASE WHEN j.blamed THEN $5 ELSE t.last_error END
    FROM judged AS j WHERE t.id = j.id
    RETURNING t.id, t.lease, t.locked_by, t.claim_seq, t.started_at, t.generation, t.attempts, t.queue, t.status, j.logs,
              j.event, CASE WHEN j.event = 'RELEASED' THEN 'not to blame: ' || $5
                            ELSE COALESCE(j.dead_reason || ': ', '') || $5 END AS reason
), logged AS (
    INSERT INTO dhara.task_history (task_id, lease, worker_id, claim_seq, claimed_at, generation, attempt, event, reason, logs)
    SELECT id, lease, locked_by, claim_seq, started_at, generation, attempts, event, reason, logs FROM reaped
), counted AS (
    INSERT INTO dhara.counters (n, queue, event, from_state, to_state)
    SELECT count(*), queue, event, 'RUNNING', status FROM reaped GROUP BY queue, event, status
    UNION ALL
    -- Tasks that the reaper itself buried or canceled: their event says so, their reaping is counted here.
    SELECT count(*), queue, 'REAPED_FINAL', NULL, NULL FROM reaped WHERE event IN ('DEAD', 'CANCELED') GROUP BY queue
)
SELECT id, queue, event FROM reaped

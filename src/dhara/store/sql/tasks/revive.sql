-- Revive: DEAD -> PENDING in a new generation with a fresh budget, optionally changed. Answers the state as it was found.
-- $1 uuid id · $2 text queue · $3 smallint priority · $4 text payload (JSON) · $5 timestamptz run_at (each NULL: as it was, now)
-- $6 text reason · $7 text by whom
WITH found AS (
    SELECT id, status, queue, priority, generation, reason, fingerprint FROM dhara.tasks WHERE id = $1 FOR UPDATE
), revived AS (
    UPDATE dhara.tasks AS t
    SET status = 'PENDING', generation = t.generation + 1, failures = 0, crashes = 0, snoozes = 0,
        queue = COALESCE($2, t.queue), priority = COALESCE($3, t.priority), payload = COALESCE($4::text::json, t.payload),
        run_at = GREATEST($5, clock_timestamp()), updated_at = clock_timestamp(), completed_at = NULL,
        lease = NULL, locked_by = NULL, claim_seq = NULL, cancel_requested_at = NULL,
        -- An expiry that has passed would kill the task again before it runs.
        expires_at = CASE WHEN t.expires_at > clock_timestamp() THEN t.expires_at END,
        reason = NULL, fingerprint = NULL,
        -- Open again, it keeps others out again; if another has taken the place, the unique index refuses.
        unique_slot = CASE WHEN t.unique_scope = 'period' THEN t.unique_slot ELSE t.unique_key END
    FROM found WHERE t.id = found.id AND found.status = 'DEAD'
    RETURNING t.id, t.queue, found.queue AS old_queue, t.priority, t.generation, t.attempts, t.run_at <= clock_timestamp() AS ready
), logged AS (
    INSERT INTO dhara.task_history (task_id, generation, attempt, event, reason)
    SELECT id, generation, attempts, 'REVIVED', $6 FROM revived
), audited AS (
    INSERT INTO dhara.audit_log (actor, action, target, before, after)
    SELECT $7, 'task.retry', id::text,
           json_build_object('status', found.status, 'generation', found.generation, 'queue', found.queue,
                             'priority', found.priority, 'reason', found.reason, 'fingerprint', found.fingerprint),
           json_build_object('status', 'PENDING', 'generation', revived.generation, 'queue', revived.queue,
                             'priority', revived.priority, 'payload_changed', $4::text IS NOT NULL)
    FROM revived JOIN found USING (id)
), counted AS (
    INSERT INTO dhara.counters (n, queue, event, from_state, to_state)
    SELECT 1, queue, 'REVIVED', 'DEAD', 'PENDING' FROM revived WHERE queue = old_queue
    UNION ALL
    -- A revival may move the task: it leaves DEAD in the one queue and enters PENDING in the other.
    SELECT 1, old_queue, 'REVIVED', 'DEAD', NULL FROM revived WHERE queue <> old_queue
    UNION ALL
    SELECT 1, queue, 'MOVED', NULL, 'PENDING' FROM revived WHERE queue <> old_queue
)
SELECT found.status AS found_status, revived.queue, revived.ready
FROM found LEFT JOIN revived ON revived.id = found.id

-- Cancel: PENDING -> CANCELED at once; RUNNING gets the mark that its handler will see; final states stay.
-- Answers the state as it was found, and the row as it is now.
-- $1 uuid id · $2 text reason · $3 text by whom
WITH found AS (
    SELECT id, status, cancel_requested_at FROM dhara.tasks WHERE id = $1 FOR UPDATE
), changed AS (
    UPDATE dhara.tasks AS t
    SET status = CASE found.status WHEN 'PENDING' THEN 'CANCELED' ELSE t.status END,
        completed_at = CASE found.status WHEN 'PENDING' THEN clock_timestamp() END,
        unique_slot = CASE WHEN found.status <> 'PENDING' OR t.unique_scope = 'period' THEN t.unique_slot END,
        cancel_requested_at = clock_timestamp(), updated_at = clock_timestamp(), reason = $2
    FROM found
    WHERE t.id = found.id
      AND (found.status = 'PENDING' OR (found.status = 'RUNNING' AND found.cancel_requested_at IS NULL))
    RETURNING t.id, t.status, t.queue, t.lease, t.locked_by, t.generation, t.attempts
), logged AS (
    INSERT INTO dhara.task_history (task_id, lease, worker_id, generation, attempt, event, reason)
    -- A PENDING row still bears the lease of its last attempt, which has no part in this.
    SELECT id, CASE status WHEN 'RUNNING' THEN lease END, CASE status WHEN 'RUNNING' THEN locked_by END, generation, attempts,
           CASE status WHEN 'CANCELED' THEN 'CANCELED' ELSE 'CANCEL_REQUESTED' END, $2
    FROM changed
), audited AS (
    INSERT INTO dhara.audit_log (actor, action, target, before, after)
    SELECT $3, 'task.cancel', id::text, json_build_object('status', found.status),
           json_build_object('status', changed.status, 'reason', $2::text)
    FROM changed JOIN found USING (id)
), counted AS (
    INSERT INTO dhara.counters (n, queue, event, from_state, to_state)
    SELECT 1, queue, 'CANCELED', 'PENDING', 'CANCELED' FROM changed WHERE status = 'CANCELED'
)
SELECT found.status AS found_status, changed.id IS NOT NULL AS changed,
       CASE changed.status WHEN 'RUNNING' THEN changed.locked_by END AS worker
FROM found LEFT JOIN changed ON changed.id = found.id

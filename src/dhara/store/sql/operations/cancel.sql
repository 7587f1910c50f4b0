-- Cancel many, as `tasks/request_cancel.sql` does with one: PENDING -> CANCELED, RUNNING ones get the mark.
-- Answers the tasks that were changed, and who runs those that run.
-- $1 uuid[] ids · $2 text reason
WITH found AS (
    SELECT id, status FROM dhara.tasks
    WHERE id = ANY ($1::uuid[]) AND (status = 'PENDING' OR (status = 'RUNNING' AND cancel_requested_at IS NULL))
    ORDER BY id FOR UPDATE
), changed AS (
    UPDATE dhara.tasks AS t
    SET status = CASE found.status WHEN 'PENDING' THEN 'CANCELED' ELSE t.status END,
        completed_at = CASE found.status WHEN 'PENDING' THEN clock_timestamp() END,
        unique_slot = CASE WHEN found.status <> 'PENDING' OR t.unique_scope = 'period' THEN t.unique_slot END,
        cancel_requested_at = clock_timestamp(), updated_at = clock_timestamp(), reason = $2
    FROM found WHERE t.id = found.id
    RETURNING t.id, t.queue, t.status, t.lease, t.locked_by, t.generation, t.attempts
), logged AS (
    INSERT INTO dhara.task_history (task_id, lease, worker_id, generation, attempt, event, reason)
    SELECT id, CASE status WHEN 'RUNNING' THEN lease END, CASE status WHEN 'RUNNING' THEN locked_by END, generation, attempts,
           CASE status WHEN 'CANCELED' THEN 'CANCELED' ELSE 'CANCEL_REQUESTED' END, $2
    FROM changed
), counted AS (
    INSERT INTO dhara.counters (n, queue, event, from_state, to_state)
    SELECT count(*), queue, 'CANCELED', 'PENDING', 'CANCELED' FROM changed WHERE status = 'CANCELED' GROUP BY queue
)
SELECT id, queue, CASE status WHEN 'RUNNING' THEN locked_by END AS worker FROM changed

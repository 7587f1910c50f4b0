-- A task's changes, oldest first; the row itself stands for ENQUEUED and is added by the caller.
-- $1 uuid id · $2 integer most rows
SELECT seq, generation, attempt, lease, event, from_state, to_state, worker_id, at, reason
FROM dhara.task_logs WHERE task_id = $1 ORDER BY seq LIMIT $2

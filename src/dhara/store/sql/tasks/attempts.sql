-- A task's executions, oldest first.
-- $1 uuid id · $2 integer most rows
SELECT generation, attempt, worker_id, lease, started_at, ended_at, outcome, reason, error, logs
FROM dhara.attempts WHERE task_id = $1 ORDER BY attempt LIMIT $2

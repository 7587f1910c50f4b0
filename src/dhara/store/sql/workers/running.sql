-- The running tasks of each given worker, oldest first, at most $2 in all.
-- $1 uuid[] workers · $2 integer
SELECT locked_by, id, type, queue, attempts, started_at FROM dhara.tasks
WHERE status = 'RUNNING' AND locked_by = ANY ($1::uuid[]) ORDER BY started_at, id LIMIT $2

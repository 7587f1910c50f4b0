-- The running tasks of each given worker, oldest first, at most $2 in all.
-- $1 uuid[] workers · $2 integer · $3 text[] patterns as of LIKE, of which one must fit their queue, or NULL: of any
SELECT locked_by, id, type, queue, attempts, started_at FROM dhara.tasks
WHERE status = 'RUNNING' AND locked_by = ANY ($1::uuid[]) AND ($3::text[] IS NULL OR queue LIKE ANY ($3::text[]))
ORDER BY started_at, id LIMIT $2

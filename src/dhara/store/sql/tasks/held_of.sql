-- As `held`, of some tasks only, each by its own key: the index of what a worker runs holds an entry for each task that it has
-- run since the oldest snapshot, and while that stays, nothing can remove them.
-- $1 uuid worker · $2 uuid[] tasks
WITH given AS MATERIALIZED (
    SELECT id, lease, cancel_requested_at, started_at, locked_by, status FROM dhara.tasks WHERE id = ANY ($2::uuid[])
)
SELECT id, lease, cancel_requested_at IS NOT NULL AS cancel_requested,
       EXTRACT(EPOCH FROM clock_timestamp() - started_at)::float8 AS age
FROM given WHERE locked_by = $1 AND status = 'RUNNING'

-- What the database believes this worker runs. The worker compares: rows it does not know are ghosts, leases that are
-- missing here are lost, and cancel requests travel along.
-- $1 uuid worker
SELECT id, lease, cancel_requested_at IS NOT NULL AS cancel_requested,
       EXTRACT(EPOCH FROM clock_timestamp() - started_at)::float8 AS age
FROM dhara.tasks WHERE locked_by = $1 AND status = 'RUNNING'

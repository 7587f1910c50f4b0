-- How long final tasks of a queue are kept, DEAD ones too; a task's own retention goes before.
-- $1 text name · $2 float8 seconds, or NULL for the fleet's setting
INSERT INTO dhara.queues AS q (name, retention) VALUES ($1, $2)
ON CONFLICT (name) DO UPDATE SET retention = EXCLUDED.retention, updated_at = clock_timestamp()
RETURNING name

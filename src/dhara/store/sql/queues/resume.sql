-- Start claiming again.
-- $1 text name
INSERT INTO dhara.queues AS q (name) VALUES ($1)
ON CONFLICT (name) DO UPDATE SET paused_at = NULL, paused_by = NULL, updated_at = clock_timestamp()
RETURNING name, paused_at, paused_by

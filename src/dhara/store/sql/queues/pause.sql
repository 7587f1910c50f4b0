-- Stop claiming from a queue; what runs goes on.
-- $1 text name · $2 text by whom
INSERT INTO dhara.queues AS q (name, paused_at, paused_by) VALUES ($1, clock_timestamp(), $2)
ON CONFLICT (name) DO UPDATE
SET paused_at = COALESCE(q.paused_at, EXCLUDED.paused_at), updated_at = clock_timestamp(),
    paused_by = CASE WHEN q.paused_at IS NULL THEN EXCLUDED.paused_by ELSE q.paused_by END
RETURNING name, paused_at, paused_by

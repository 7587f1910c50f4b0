-- Start claiming again.
-- $1 text name · $2 text by whom
WITH found AS (
    SELECT name, paused_at, paused_by FROM dhara.queues WHERE name = $1 AND paused_at IS NOT NULL FOR UPDATE
), resumed AS (
    UPDATE dhara.queues AS q SET paused_at = NULL, paused_by = NULL, updated_at = clock_timestamp()
    FROM found WHERE q.name = found.name
    RETURNING q.name
), known AS (
    INSERT INTO dhara.queues (name) VALUES ($1) ON CONFLICT (name) DO NOTHING
)
INSERT INTO dhara.audit_log (actor, action, target, before, after)
SELECT $2, 'queue.resume', name,
       json_build_object('paused', true, 'paused_at', found.paused_at, 'paused_by', found.paused_by),
       json_build_object('paused', false)
FROM resumed JOIN found USING (name)

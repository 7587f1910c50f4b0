-- Stop claiming from a queue; what runs goes on. A queue that is paused already stays so, by whoever paused it.
-- $1 text name · $2 text by whom
WITH paused AS (
    INSERT INTO dhara.queues AS q (name, paused_at, paused_by) VALUES ($1, clock_timestamp(), $2)
    ON CONFLICT (name) DO UPDATE
    SET paused_at = EXCLUDED.paused_at, paused_by = EXCLUDED.paused_by, updated_at = clock_timestamp()
    WHERE q.paused_at IS NULL
    RETURNING name, paused_at, paused_by
)
INSERT INTO dhara.audit_log (actor, action, target, before, after)
SELECT $2, 'queue.pause', name, json_build_object('paused', false), json_build_object('paused', true) FROM paused

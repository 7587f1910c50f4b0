-- A queue has no limit of its own any longer, and is not full.
-- $1 text name · $2 text by whom
WITH unlimited AS (
    DELETE FROM dhara.queue_limits WHERE name = $1 RETURNING name, most
), freed AS (
    DELETE FROM dhara.full_queues WHERE name = $1
), known AS (
    INSERT INTO dhara.queues (name) VALUES ($1) ON CONFLICT (name) DO NOTHING
)
INSERT INTO dhara.audit_log (actor, action, target, before, after)
SELECT $2, 'queue.limit', name, json_build_object('limit', most), json_build_object('limit', NULL) FROM unlimited

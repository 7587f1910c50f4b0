-- How long final tasks of a queue are kept, DEAD ones too; a task's own retention goes before.
-- $1 text name · $2 float8 seconds, or NULL for the fleet's setting · $3 text by whom
WITH found AS (
    SELECT retention FROM dhara.queues WHERE name = $1 FOR UPDATE
), changed AS (
    -- Only once `found` has its lock, so that what was before is what is changed.
    INSERT INTO dhara.queues AS q (name, retention) SELECT $1, $2 WHERE (SELECT count(*) FROM found) >= 0
    ON CONFLICT (name) DO UPDATE SET retention = EXCLUDED.retention, updated_at = clock_timestamp()
    RETURNING name
)
INSERT INTO dhara.audit_log (actor, action, target, before, after)
SELECT $3, 'queue.retention', name, json_build_object('retention', (SELECT retention FROM found)),
       json_build_object('retention', $2::float8)
FROM changed

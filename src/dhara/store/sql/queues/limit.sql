-- How many PENDING tasks a queue takes.
-- $1 text name · $2 bigint most · $3 text by whom
WITH found AS (
    SELECT most FROM dhara.queue_limits WHERE name = $1 FOR UPDATE
), limited AS (
    -- Only once `found` has its lock, so that what was before is what is changed.
    INSERT INTO dhara.queue_limits AS l (name, most) SELECT $1, $2 WHERE (SELECT count(*) FROM found) >= 0
    ON CONFLICT (name) DO UPDATE SET most = EXCLUDED.most, updated_at = clock_timestamp()
    RETURNING name, most
), known AS (
    INSERT INTO dhara.queues (name) VALUES ($1) ON CONFLICT (name) DO NOTHING
)
INSERT INTO dhara.audit_log (actor, action, target, before, after)
SELECT $3, 'queue.limit', name, json_build_object('limit', (SELECT most FROM found)), json_build_object('limit', most)
FROM limited

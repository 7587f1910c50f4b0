-- How many PENDING tasks a queue takes over HTTP.
-- $1 text name · $2 bigint most · $3 text by whom
WITH limited AS (
    INSERT INTO dhara.queue_limits AS l (name, most) VALUES ($1, $2)
    ON CONFLICT (name) DO UPDATE SET most = EXCLUDED.most, updated_at = clock_timestamp()
    RETURNING name, most
)
INSERT INTO dhara.audit_log (actor, action, target, after)
SELECT $3, 'queue.limit', name, json_build_object('limit', most) FROM limited

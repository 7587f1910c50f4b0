-- A new key. No row if there are $9 already: servers keep them all in memory.
-- $1 text id · $2 text name · $3 bytea digest · $4 text[] scopes · $5 text[] queues · $6 float8 rate
-- · $7 float8 seconds that it is valid, or NULL for ever · $8 text by whom · $9 bigint most
WITH made AS (
    INSERT INTO dhara.api_keys (id, name, digest, scopes, queues, rate, expires_at, created_by)
    SELECT $1, $2, $3, $4, $5, $6, clock_timestamp() + $7 * interval '1 second', $8
    WHERE (SELECT count(*) FROM dhara.api_keys) < $9
    RETURNING id, name, digest, scopes, queues, rate, created_at, created_by, changed_at, expires_at, revoked_at, revoked_by,
              replaced_by, last_used_at
), audited AS (
    INSERT INTO dhara.audit_log (actor, action, target, after)
    SELECT $8, 'key.create', id, json_build_object('name', name, 'scopes', scopes, 'queues', queues, 'rate', rate,
                                                   'expires_at', expires_at)
    FROM made
)
SELECT * FROM made

-- What a server must learn of keys: those changed at $1 or later, revoked ones too.
-- $1 timestamptz
SELECT id, name, digest, scopes, queues, rate, created_at, created_by, changed_at, expires_at, revoked_at, revoked_by,
       replaced_by, last_used_at
FROM dhara.api_keys WHERE changed_at >= $1

-- One key.
-- $1 text id
SELECT id, name, digest, scopes, queues, rate, created_at, created_by, changed_at, expires_at, revoked_at, revoked_by,
       replaced_by, last_used_at
FROM dhara.api_keys WHERE id = $1

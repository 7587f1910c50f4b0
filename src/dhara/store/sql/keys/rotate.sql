-- A key in place of another, which stays valid for $4 seconds more. No row if that one is valid no longer, or has been
-- replaced before.
-- $1 text id of the old · $2 text id of the new · $3 bytea its digest · $4 float8 seconds · $5 text by whom
WITH old AS (
    SELECT id, name, scopes, queues, rate, expires_at - created_at AS lifetime FROM dhara.api_keys
    WHERE id = $1 AND revoked_at IS NULL AND replaced_by IS NULL
      AND (expires_at IS NULL OR expires_at > clock_timestamp())
    FOR UPDATE
), made AS (
    -- As long as the old one was made for.
    INSERT INTO dhara.api_keys (id, name, digest, scopes, queues, rate, expires_at, created_by)
    SELECT $2, name, $3, scopes, queues, rate, clock_timestamp() + lifetime, $5 FROM old
    RETURNING id, name, digest, scopes, queues, rate, created_at, created_by, changed_at, expires_at, revoked_at,
              revoked_by, replaced_by, last_used_at
), ended AS (
    UPDATE dhara.api_keys AS k
    SET expires_at = LEAST(k.expires_at, clock_timestamp() + $4 * interval '1 second'), replaced_by = $2,
        changed_at = clock_timestamp()
    FROM old WHERE k.id = old.id
), audited AS (
    INSERT INTO dhara.audit_log (actor, action, target, after)
    SELECT $5, 'key.rotate', $1, json_build_object('replaced_by', id, 'overlap', $4) FROM made
)
SELECT * FROM made

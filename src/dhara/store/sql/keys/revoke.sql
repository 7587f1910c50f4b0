-- End a key for good; the first to revoke it stays on record.
-- $1 text id · $2 text by whom
WITH found AS (
    SELECT id, revoked_at FROM dhara.api_keys WHERE id = $1 FOR UPDATE
), revoked AS (
    UPDATE dhara.api_keys AS k
    SET revoked_at = COALESCE(k.revoked_at, clock_timestamp()),
        revoked_by = CASE WHEN k.revoked_at IS NULL THEN $2 ELSE k.revoked_by END,
        changed_at = clock_timestamp()
    FROM found WHERE k.id = found.id
    RETURNING k.id, k.name, k.digest, k.scopes, k.queues, k.rate, k.created_at, k.created_by, k.changed_at, k.expires_at,
              k.revoked_at, k.revoked_by, k.replaced_by, k.last_used_at
), audited AS (
    INSERT INTO dhara.audit_log (actor, action, target, after)
    SELECT $2, 'key.revoke', id, json_build_object('revoked', true) FROM found WHERE revoked_at IS NULL
)
SELECT * FROM revoked

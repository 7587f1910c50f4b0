-- A group of failures counts again.
-- $1 text fingerprint · $2 text by whom
WITH unmuted AS (
    DELETE FROM dhara.failure_groups WHERE fingerprint = $1 RETURNING fingerprint, muted_at, muted_by
)
INSERT INTO dhara.audit_log (actor, action, target, before, after)
SELECT $2, 'failures.unmute', fingerprint,
       json_build_object('muted', true, 'muted_at', muted_at, 'muted_by', muted_by), json_build_object('muted', false)
FROM unmuted

-- Mute a group of failures: it is known, and left out of alarms. Muting twice changes nothing.
-- $1 text fingerprint · $2 text by whom
WITH muted AS (
    INSERT INTO dhara.failure_groups (fingerprint, muted_by) VALUES ($1, $2) ON CONFLICT (fingerprint) DO NOTHING
    RETURNING fingerprint
)
INSERT INTO dhara.audit_log (actor, action, target, before, after)
SELECT $2, 'failures.mute', fingerprint, json_build_object('muted', false), json_build_object('muted', true) FROM muted

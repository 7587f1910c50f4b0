-- Let a schedule fire again, from its next fire time on: what it missed while it was paused was not meant to be.
-- $1 text name · $2 timestamptz next fire · $3 text by whom
WITH found AS (
    SELECT name, paused_at, paused_by FROM dhara.schedules WHERE name = $1 AND paused_at IS NOT NULL FOR UPDATE
), resumed AS (
    UPDATE dhara.schedules AS s SET paused_at = NULL, paused_by = NULL, next_at = $2, updated_at = clock_timestamp()
    FROM found WHERE s.name = found.name
    RETURNING s.name
)
INSERT INTO dhara.audit_log (actor, action, target, before, after)
SELECT $3, 'schedule.resume', name,
       json_build_object('paused', true, 'paused_at', found.paused_at, 'paused_by', found.paused_by),
       json_build_object('paused', false)
FROM resumed JOIN found USING (name)

-- Let a schedule fire no more; one that is paused already stays so, by whoever paused it.
-- $1 text name · $2 text by whom
WITH paused AS (
    UPDATE dhara.schedules SET paused_at = clock_timestamp(), paused_by = $2, updated_at = clock_timestamp()
    WHERE name = $1 AND paused_at IS NULL
    RETURNING name
)
INSERT INTO dhara.audit_log (actor, action, target, before, after)
SELECT $2, 'schedule.pause', name, json_build_object('paused', false), json_build_object('paused', true) FROM paused

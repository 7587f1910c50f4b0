-- Forget a schedule; its fires stay on record, so that one of the same name fires no fire time again.
-- $1 text name · $2 text by whom
WITH gone AS (
    DELETE FROM dhara.schedules WHERE name = $1 RETURNING *
), audited AS (
    INSERT INTO dhara.audit_log (actor, action, target, before)
    SELECT $2, 'schedule.delete', gone.name, (to_jsonb(gone) - 'payload')::json FROM gone
)
SELECT name FROM gone

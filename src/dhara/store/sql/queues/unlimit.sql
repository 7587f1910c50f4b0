-- A queue takes as many tasks as the setting says.
-- $1 text name · $2 text by whom
WITH unlimited AS (DELETE FROM dhara.queue_limits WHERE name = $1 RETURNING name, most)
INSERT INTO dhara.audit_log (actor, action, target, before)
SELECT $2, 'queue.limit', name, json_build_object('limit', most) FROM unlimited

-- One task, whole.
-- $1 uuid id
SELECT * FROM dhara.tasks WHERE id = $1

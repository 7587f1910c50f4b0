-- Tasks, whole.
-- $1 uuid[] ids
SELECT * FROM dhara.tasks WHERE id = ANY ($1::uuid[])

-- Which of these tasks are final? For those who wait.
-- $1 uuid[] ids
SELECT id FROM dhara.tasks WHERE id = ANY ($1::uuid[]) AND status IN ('COMPLETED', 'CANCELED', 'DEAD')

-- I15: no claim before `run_at`.
SELECT 'claimed before it was due' AS what, id AS task_id, format('run_at %s, claimed %s', run_at, started_at) AS detail
FROM dhara.tasks WHERE status = 'RUNNING' AND started_at < run_at

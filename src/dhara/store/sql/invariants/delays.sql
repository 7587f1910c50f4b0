-- I15: waits stored after a failure are inside the band of the backoff, for tasks that follow the worker's settings.
-- $1 float8 base and $2 float8 cap of the backoff, seconds
SELECT 'a wait outside its band' AS what, id AS task_id, format('%s s after failure %s', wait, failures) AS detail
FROM (
    SELECT t.id, t.failures, extract(epoch FROM t.run_at - t.updated_at)::float8 AS wait,
           LEAST($2::float8, $1::float8 * 2 ^ (t.failures - 1)) AS middle
    FROM dhara.tasks AS t
    WHERE t.status = 'PENDING' AND t.failures > 0 AND 'RETRIED' = (
        SELECT h.event FROM dhara.task_history AS h WHERE h.task_id = t.id ORDER BY h.seq DESC LIMIT 1)
) AS waiting
WHERE wait NOT BETWEEN 0.5 * middle - 0.01 AND 1.5 * middle + 0.01

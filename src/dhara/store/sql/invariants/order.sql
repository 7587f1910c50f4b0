-- I21: one log row a change; `seq` and `at` agree in order per task (notes are made without the task's lock).
WITH steps AS (
    SELECT task_id, seq, at, lag(at) OVER (PARTITION BY task_id ORDER BY seq) AS before
    FROM dhara.task_logs WHERE from_state IS NOT NULL
)
SELECT 'changes out of order' AS what, task_id, format('%s at %s, the one before at %s', seq, at, before) AS detail
FROM steps WHERE at < before
UNION ALL
SELECT 'a number used twice', l.task_id, format('seq %s: %s', l.seq, l.event)
FROM dhara.task_logs AS l WHERE l.seq IN (SELECT seq FROM dhara.task_logs GROUP BY seq HAVING count(*) > 1)

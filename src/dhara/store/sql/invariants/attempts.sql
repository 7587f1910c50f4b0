-- I5: attempts are 1..k without gap or repeat, k is the row's; failures stay within the budget.
WITH starts AS (
    SELECT task_id, attempt, row_number() OVER task AS nth, first_value(attempt) OVER task AS first
    FROM dhara.attempts WINDOW task AS (PARTITION BY task_id ORDER BY attempt)
), counted AS (
    SELECT task_id, count(*) AS n FROM starts GROUP BY task_id
)
SELECT 'attempts with a gap or a repeat' AS what, s.task_id, format('attempt %s is the %s. on record', s.attempt, s.nth) AS detail
FROM starts AS s
-- Of a task that is gone, the first attempts may be gone too.
WHERE s.attempt <> s.nth + CASE WHEN EXISTS (SELECT FROM dhara.tasks AS t WHERE t.id = s.task_id) THEN 0 ELSE s.first - 1 END
UNION ALL
SELECT 'the row counts otherwise', t.id, format('%s attempts, %s on record', t.attempts, COALESCE(c.n, 0))
FROM dhara.tasks AS t LEFT JOIN counted AS c ON c.task_id = t.id
WHERE t.attempts <> COALESCE(c.n, 0)
UNION ALL
SELECT 'more failures than allowed', id, format('%s failures, %s retries', failures, max_retries)
FROM dhara.tasks WHERE failures > max_retries + 1

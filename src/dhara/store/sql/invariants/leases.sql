-- I6: no lease occurs in two claims, and none is missing.
SELECT 'a lease of two claims, or of none' AS what, task_id, format('attempt %s, lease %s', attempt, lease) AS detail
FROM dhara.attempts
WHERE lease IS NULL OR lease IN (SELECT lease FROM dhara.attempts GROUP BY lease HAVING count(*) > 1)

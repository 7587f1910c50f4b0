-- I19: after a cancel request no further attempt in that generation; after CANCELED none at all.
WITH wishes AS (
    SELECT task_id, seq, generation, event FROM dhara.task_history WHERE event IN ('CANCELED', 'CANCEL_REQUESTED')
)
SELECT 'an attempt after it was canceled' AS what, c.task_id, format('%s %s, then a claim', c.seq, c.event) AS detail
FROM wishes AS c JOIN dhara.task_logs AS l ON l.task_id = c.task_id AND l.event = 'CLAIMED' AND l.seq > c.seq
WHERE c.event = 'CANCELED' OR l.generation = c.generation

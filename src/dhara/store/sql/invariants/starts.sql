-- I13: every start is explained: one for the task itself, and one for each return to PENDING, unless it left otherwise.
WITH steps AS (
    SELECT task_id,
           count(*) FILTER (WHERE event = 'CLAIMED') AS starts,
           count(*) FILTER (WHERE to_state = 'PENDING') AS returns,
           count(*) FILTER (WHERE from_state = 'PENDING' AND event <> 'CLAIMED') AS left_unstarted,
           min(seq) FILTER (WHERE event = 'CLAIMED' AND attempt = 1) = min(seq) AS whole
    FROM dhara.task_logs WHERE from_state IS NOT NULL GROUP BY task_id
)
SELECT 'starts that no event explains' AS what, s.task_id,
       format('%s starts, %s returns to PENDING, %s ends without a start, now %s',
              s.starts, s.returns, s.left_unstarted, t.status) AS detail
FROM steps AS s LEFT JOIN dhara.tasks AS t ON t.id = s.task_id
WHERE s.starts <> 1 + s.returns - s.left_unstarted - COALESCE((t.status = 'PENDING')::int, 0)
  -- Of a task that is gone, the beginning of its history may be gone too.
  AND (t.id IS NOT NULL OR s.whole)

-- I8: each end of an attempt follows its own claim, under the same lease.
WITH steps AS (
    SELECT task_id, seq, event, from_state, lease, lag(event) OVER task AS previous, lag(lease) OVER task AS claimed
    FROM dhara.task_logs WHERE from_state IS NOT NULL
    WINDOW task AS (PARTITION BY task_id ORDER BY seq)
)
SELECT 'an end under another lease' AS what, task_id,
       format('%s %s with lease %s, after %s with lease %s', seq, event, lease, previous, claimed) AS detail
FROM steps
WHERE from_state = 'RUNNING' AND (previous IS DISTINCT FROM 'CLAIMED' OR lease IS DISTINCT FROM claimed)

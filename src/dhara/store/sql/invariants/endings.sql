-- I9: at most one final event a generation; afterwards only REVIVED or PRUNED.
-- $1 text[] final states
WITH steps AS (
    SELECT task_id, generation, seq, event, to_state, lead(event) OVER (PARTITION BY task_id ORDER BY seq) AS next
    FROM dhara.task_logs WHERE from_state IS NOT NULL
)
SELECT 'something after the end' AS what, task_id, format('generation %s: %s %s, then %s', generation, seq, event, next) AS detail
FROM steps WHERE to_state = ANY ($1::text[]) AND next NOT IN ('REVIVED', 'PRUNED')
UNION ALL
SELECT 'ended twice', task_id, format('generation %s: %s final events', generation, count(*))
FROM steps WHERE to_state = ANY ($1::text[])
GROUP BY task_id, generation HAVING count(*) > 1

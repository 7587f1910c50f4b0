-- I20: the counters give, per queue, the same numbers by state as the rows.
WITH flows AS (
    SELECT queue, to_state AS status, n FROM dhara.counters WHERE to_state IS NOT NULL
    UNION ALL SELECT queue, from_state, -n FROM dhara.counters WHERE from_state IS NOT NULL
), counted AS (
    SELECT queue, status, sum(n) AS n FROM flows GROUP BY queue, status
), standing AS (
    SELECT queue, status, count(*) AS n FROM dhara.tasks GROUP BY queue, status
)
SELECT 'the counters are wrong by state' AS what, NULL::uuid AS task_id,
       format('queue %s, %s: %s counted, %s rows', queue, status, COALESCE(c.n, 0), COALESCE(s.n, 0)) AS detail
FROM counted AS c FULL JOIN standing AS s USING (queue, status)
WHERE COALESCE(c.n, 0) <> COALESCE(s.n, 0)

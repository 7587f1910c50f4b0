-- I20: the counters give the same numbers by event as the log, until tasks are pruned; then no smaller ones.
-- $1 text[] notes that are not counted
WITH counted AS (
    SELECT event, sum(n) AS n FROM dhara.counters WHERE event NOT IN ('MOVED', 'REAPED_FINAL') GROUP BY event
), logged AS (
    SELECT event, count(*) AS n FROM dhara.task_logs GROUP BY event
    UNION ALL
    SELECT 'ENQUEUED', (SELECT count(*) FROM dhara.tasks) + (SELECT count(*) FROM dhara.task_history WHERE event = 'PRUNED')
)
SELECT 'the counters are wrong by event' AS what, NULL::uuid AS task_id,
       format('%s: %s counted, %s logged', event, COALESCE(c.n, 0), COALESCE(l.n, 0)) AS detail
FROM counted AS c FULL JOIN logged AS l USING (event)
WHERE event <> ALL ($1::text[]) AND COALESCE(c.n, 0) <> COALESCE(l.n, 0)
  -- History may leave, the counters stay: where tasks have been pruned, the log may know less.
  AND (COALESCE(c.n, 0) < COALESCE(l.n, 0) OR NOT EXISTS (SELECT FROM dhara.counters AS p WHERE p.event = 'PRUNED'))

-- Note each queue's totals and depth, and those of all queues (`*`), as the first found in this minute: their differences
-- are the rates. Once noted, a minute costs one look. Only the $1 busiest queues.
-- $1 integer most queues
INSERT INTO dhara.rates (minute, at, queue, enqueued, completed, failed, dead, depth)
SELECT date_trunc('minute', statement_timestamp()), statement_timestamp(), CASE GROUPING(queue) WHEN 1 THEN '*' ELSE queue END,
       COALESCE(sum(n) FILTER (WHERE event = 'ENQUEUED'), 0) AS enqueued,
       COALESCE(sum(n) FILTER (WHERE event = 'COMPLETED'), 0),
       COALESCE(sum(n) FILTER (WHERE event IN ('RETRIED', 'REAPED') OR (event = 'DEAD' AND from_state = 'RUNNING')), 0),
       COALESCE(sum(n) FILTER (WHERE event IN ('DEAD', 'EXPIRED')), 0),
       COALESCE(sum(n) FILTER (WHERE to_state = 'PENDING'), 0) - COALESCE(sum(n) FILTER (WHERE from_state = 'PENDING'), 0)
FROM dhara.counters
WHERE NOT EXISTS (SELECT FROM dhara.rates AS r WHERE r.queue = '*' AND r.minute = date_trunc('minute', statement_timestamp()))
GROUP BY GROUPING SETS ((queue), ())
HAVING GROUPING(queue) = 1 OR queue <> ''
ORDER BY GROUPING(queue) DESC, 4 DESC LIMIT $1 + 1
ON CONFLICT (queue, minute) DO NOTHING

-- How many tasks are PENDING in each queue whose number is limited, from the flows in `counters`, and its own limit.
-- $1 boolean whether all are limited
WITH counts AS (
    SELECT queue, (COALESCE(sum(n) FILTER (WHERE to_state = 'PENDING'), 0)
                   - COALESCE(sum(n) FILTER (WHERE from_state = 'PENDING'), 0))::bigint AS depth
    FROM dhara.counters
    WHERE queue <> '' AND ($1 OR queue IN (SELECT name FROM dhara.queue_limits))
    GROUP BY queue
)
SELECT COALESCE(c.queue, l.name) AS name, GREATEST(c.depth, 0) AS depth, l.most
FROM counts AS c FULL JOIN dhara.queue_limits AS l ON l.name = c.queue

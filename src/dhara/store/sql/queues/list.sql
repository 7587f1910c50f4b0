-- Every queue that has ever held a task or a setting, with its figures. Counts by state come from the flows in
-- `counters`, so the cost grows with the number of queues, not of tasks; ready ones are counted up to $2.
-- $1 text name, or NULL for all · $2 integer cap
WITH flows AS MATERIALIZED (
    SELECT queue, n, event, from_state, to_state FROM dhara.counters WHERE queue <> '' AND ($1::text IS NULL OR queue = $1)
), counts AS (
    SELECT queue,
           COALESCE(sum(n) FILTER (WHERE to_state = 'PENDING'), 0) - COALESCE(sum(n) FILTER (WHERE from_state = 'PENDING'), 0) AS pending,
           COALESCE(sum(n) FILTER (WHERE to_state = 'RUNNING'), 0) - COALESCE(sum(n) FILTER (WHERE from_state = 'RUNNING'), 0) AS running,
           COALESCE(sum(n) FILTER (WHERE to_state = 'DEAD'), 0) - COALESCE(sum(n) FILTER (WHERE from_state = 'DEAD'), 0) AS dead,
           COALESCE(sum(n) FILTER (WHERE event = 'ENQUEUED'), 0) AS enqueued,
           COALESCE(sum(n) FILTER (WHERE event = 'COMPLETED'), 0) AS completed
    FROM flows GROUP BY queue
)
SELECT COALESCE(c.queue, q.name) AS name, q.paused_at, q.paused_by,
       COALESCE(c.pending, 0)::bigint AS depth, COALESCE(c.running, 0)::bigint AS running, COALESCE(c.dead, 0)::bigint AS dead,
       COALESCE(c.enqueued, 0)::bigint AS enqueued, COALESCE(c.completed, 0)::bigint AS completed,
       r.ready, r.oldest_ready_age
FROM counts AS c FULL JOIN (SELECT * FROM dhara.queues WHERE $1::text IS NULL OR name = $1) AS q ON q.name = c.queue
CROSS JOIN LATERAL (
    SELECT count(*) AS ready, EXTRACT(EPOCH FROM clock_timestamp() - min(run_at))::float8 AS oldest_ready_age
    FROM (SELECT run_at FROM dhara.tasks
          WHERE status = 'PENDING' AND queue = COALESCE(c.queue, q.name) AND run_at <= statement_timestamp() LIMIT $2) AS t
) AS r
ORDER BY 1

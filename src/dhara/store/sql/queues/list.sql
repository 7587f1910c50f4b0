-- Every queue that has ever held a task or a setting, with its figures. Counts by state come from the flows in
-- `counters`, so the cost grows with the number of queues, not of tasks; ready ones are counted up to $2 in each lane, about $3 in all.
-- $1 text name, or NULL for all · $2 bigint cap of a lane · $3 bigint cap of all lanes
WITH RECURSIVE lane AS (
    (SELECT queue, priority FROM dhara.tasks WHERE status = 'PENDING' ORDER BY queue, priority DESC, run_at, id LIMIT 1)
    UNION ALL
    SELECT next.* FROM lane CROSS JOIN LATERAL (
        (SELECT queue, priority FROM dhara.tasks
         WHERE status = 'PENDING' AND queue = lane.queue AND priority < lane.priority
         ORDER BY queue, priority DESC, run_at, id LIMIT 1)
        UNION ALL
        (SELECT queue, priority FROM dhara.tasks
         WHERE status = 'PENDING' AND queue > lane.queue
         ORDER BY queue, priority DESC, run_at, id LIMIT 1)
        LIMIT 1
    ) AS next
), share AS MATERIALIZED (
    -- With very many lanes, fewer of each, so that the whole stays bounded.
    SELECT LEAST($2::bigint, GREATEST($3::bigint / GREATEST(count(*), 1), 10)) AS most
    FROM lane WHERE $1::text IS NULL OR queue = $1
), waiting AS (
    SELECT lane.queue, sum(t.ready)::bigint AS ready, bool_or(t.ready >= share.most) AS ready_capped,
           EXTRACT(EPOCH FROM clock_timestamp() - min(t.oldest))::float8 AS oldest_ready_age
    FROM lane CROSS JOIN share CROSS JOIN LATERAL (
        SELECT count(*) AS ready, min(run_at) AS oldest FROM (
            SELECT run_at FROM dhara.tasks
            WHERE status = 'PENDING' AND queue = lane.queue AND priority = lane.priority
              AND run_at <= statement_timestamp() ORDER BY run_at, id LIMIT share.most) AS first
    ) AS t
    WHERE $1::text IS NULL OR lane.queue = $1
    GROUP BY lane.queue
), flows AS MATERIALIZED (
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
SELECT COALESCE(c.queue, q.name) AS name, q.paused_at, q.paused_by, q.retention, q.wait_objective, l.most AS "limit",
       COALESCE(c.pending, 0)::bigint AS depth, COALESCE(c.running, 0)::bigint AS running, COALESCE(c.dead, 0)::bigint AS dead,
       COALESCE(c.enqueued, 0)::bigint AS enqueued, COALESCE(c.completed, 0)::bigint AS completed,
       COALESCE(r.ready, 0) AS ready, COALESCE(r.ready_capped, false) AS ready_capped, r.oldest_ready_age
FROM counts AS c FULL JOIN (SELECT * FROM dhara.queues WHERE $1::text IS NULL OR name = $1) AS q ON q.name = c.queue
LEFT JOIN waiting AS r ON r.queue = COALESCE(c.queue, q.name)
LEFT JOIN dhara.queue_limits AS l ON l.name = COALESCE(c.queue, q.name)
ORDER BY 1

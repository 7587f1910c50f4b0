-- The lanes (queue, priority) that hold PENDING tasks, and whether the first of each is ready now; and when that is, by
-- the database's clock.
-- A loose scan: one probe of the index a lane, whatever the number of tasks.
WITH RECURSIVE lane AS (
    (SELECT queue, priority, run_at FROM dhara.tasks WHERE status = 'PENDING'
     ORDER BY queue, priority DESC, run_at, id LIMIT 1)
    UNION ALL
    SELECT next.* FROM lane CROSS JOIN LATERAL (
        (SELECT queue, priority, run_at FROM dhara.tasks
         WHERE status = 'PENDING' AND queue = lane.queue AND priority < lane.priority
         ORDER BY queue, priority DESC, run_at, id LIMIT 1)
        UNION ALL
        (SELECT queue, priority, run_at FROM dhara.tasks
         WHERE status = 'PENDING' AND queue > lane.queue
         ORDER BY queue, priority DESC, run_at, id LIMIT 1)
        LIMIT 1
    ) AS next
)
SELECT queue, priority, run_at <= statement_timestamp() AS ready,
       EXTRACT(EPOCH FROM run_at - clock_timestamp())::float8 AS due_in, statement_timestamp() AS at
FROM lane

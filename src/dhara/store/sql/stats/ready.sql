-- PENDING tasks that are ready and delayed, each counted up to $1 in all: lane by lane, so that neither count wades
-- through the other's tasks.
-- $1 integer cap
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
)
SELECT (SELECT count(*) FROM (
            SELECT FROM lane CROSS JOIN LATERAL (
                SELECT FROM dhara.tasks WHERE status = 'PENDING' AND queue = lane.queue AND priority = lane.priority
                                          AND run_at <= statement_timestamp() LIMIT $1) AS t
            LIMIT $1) AS first) AS ready,
       (SELECT count(*) FROM (
            SELECT FROM lane CROSS JOIN LATERAL (
                SELECT FROM dhara.tasks WHERE status = 'PENDING' AND queue = lane.queue AND priority = lane.priority
                                          AND run_at > statement_timestamp() LIMIT $1) AS t
            LIMIT $1) AS first) AS delayed

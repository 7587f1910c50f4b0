-- Ready tasks of types that no live worker knows, by type and queue, most first. They wait; nobody fails them.
-- Looks at the first rows of each lane, $1 in all and at least 10 a lane: claims pass over such tasks, so they gather in front.
-- $1 integer rows to look at · $2 integer answers at most
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
), lanes AS MATERIALIZED (
    SELECT queue, priority FROM lane LIMIT GREATEST($1::integer / 10, 1)
), known AS MATERIALIZED (
    SELECT DISTINCT unnest(types) AS type FROM dhara.workers WHERE state IN ('live', 'draining')
), ready AS (
    SELECT t.type, t.queue FROM lanes CROSS JOIN LATERAL (
        SELECT type, queue FROM dhara.tasks
        WHERE status = 'PENDING' AND queue = lanes.queue AND priority = lanes.priority AND run_at <= statement_timestamp()
        ORDER BY run_at, id LIMIT GREATEST($1::integer / (SELECT count(*) FROM lanes), 10)
    ) AS t
)
SELECT type, queue, count(*) AS count FROM ready
WHERE type NOT IN (SELECT type FROM known) GROUP BY type, queue ORDER BY 3 DESC, 1, 2 LIMIT $2

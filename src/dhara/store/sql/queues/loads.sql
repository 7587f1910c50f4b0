-- How many tasks are PENDING in each queue whose number is limited, from the flows in `counters`, and its own limit. Notes
-- in `full_queues`, for enqueues by SQL, which of those with one of their own are full. Costs next to nothing where there are no limits.
-- $1 boolean whether all are limited
WITH limited AS MATERIALIZED (
    SELECT name, most FROM dhara.queue_limits
), counts AS (
    SELECT queue, (COALESCE(sum(n) FILTER (WHERE to_state = 'PENDING'), 0)
                   - COALESCE(sum(n) FILTER (WHERE from_state = 'PENDING'), 0))::bigint AS depth
    FROM dhara.counters
    WHERE ($1 OR EXISTS (SELECT FROM limited)) AND queue <> '' AND ($1 OR queue IN (SELECT name FROM limited))
    GROUP BY queue
), found AS MATERIALIZED (
    SELECT COALESCE(c.queue, l.name) AS name, GREATEST(c.depth, 0) AS depth, l.most
    FROM counts AS c FULL JOIN limited AS l ON l.name = c.queue
), freed AS (
    -- Whoever else looks at this moment notes the same: nobody waits for anybody.
    DELETE FROM dhara.full_queues WHERE name IN (
        SELECT f.name FROM dhara.full_queues AS f
        WHERE f.name NOT IN (SELECT name FROM found WHERE depth >= most) FOR UPDATE SKIP LOCKED)
), filled AS (
    INSERT INTO dhara.full_queues (name)
    SELECT name FROM found WHERE depth >= most AND name NOT IN (SELECT f.name FROM dhara.full_queues AS f)
    ORDER BY name ON CONFLICT (name) DO NOTHING
)
SELECT name, depth, most FROM found

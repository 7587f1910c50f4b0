-- The facts that explain why a task is not running. Its cost is bounded: ready tasks before it are counted up to $2, lane
-- by lane of its queue, and of workers only the live ones and the last that knew its type are looked at.
-- $1 uuid id · $2 integer cap
WITH task AS MATERIALIZED (
    SELECT * FROM dhara.tasks WHERE id = $1
), live AS MATERIALIZED (
    SELECT w.id, w.types, w.queues, w.slots FROM dhara.workers AS w WHERE w.state = 'live'
), serving AS MATERIALIZED (
    SELECT live.id, COALESCE((live.queues->>task.queue)::integer, live.slots) AS slots
    FROM live JOIN task ON task.type = ANY (live.types)
    WHERE live.queues->>task.queue IS NOT NULL OR live.queues->>'*' IS NOT NULL
), busy AS (
    SELECT count(*) AS busy FROM (
        SELECT FROM serving JOIN dhara.tasks AS t ON t.status = 'RUNNING' AND t.locked_by = serving.id LIMIT $2) AS t
), ahead AS (
    SELECT count(*) AS ahead FROM (
        SELECT FROM task CROSS JOIN generate_series(task.priority + 1, 100) AS lane (priority) CROSS JOIN LATERAL (
            SELECT FROM dhara.tasks AS t WHERE t.status = 'PENDING' AND t.queue = task.queue
                AND t.priority = lane.priority AND t.run_at <= statement_timestamp() LIMIT $2) AS higher
        WHERE task.status = 'PENDING'
        UNION ALL
        SELECT FROM task JOIN dhara.tasks AS t ON t.status = 'PENDING' AND t.queue = task.queue
            AND t.priority = task.priority AND (t.run_at, t.id) < (task.run_at, task.id)
            AND t.run_at <= statement_timestamp()
        WHERE task.status = 'PENDING'
        LIMIT $2) AS t
), rate AS (
    -- What its queue completed in the last five minutes: the newest sample less the oldest of them.
    SELECT (max(completed) - min(completed)) / NULLIF(EXTRACT(EPOCH FROM max(at) - min(at)), 0) AS rate
    FROM dhara.rates WHERE queue = (SELECT queue FROM task) AND minute > statement_timestamp() - interval '6 minutes'
)
SELECT clock_timestamp() AS now, task.status, task.type, task.queue, task.run_at, task.attempts, task.failures, task.crashes,
       task.max_retries, task.started_at, task.completed_at, task.cancel_requested_at, task.expires_at, task.reason,
       task.last_error, task.timeout, q.paused_at, q.paused_by,
       (SELECT count(*) FROM live) AS live,
       (SELECT count(*) FROM live WHERE task.type = ANY (live.types)) AS knowing,
       (SELECT count(*) FROM serving) AS serving,
       COALESCE((SELECT sum(slots) FROM serving), 0)::bigint AS slots,
       busy.busy, ahead.ahead, rate.rate::float8 AS rate,
       task.locked_by, worker.host, worker.pid, worker.state, worker.beat_at,
       last.id AS last_id, last.host AS last_host, last.pid AS last_pid, last.state AS last_state, last.beat_at AS last_beat_at
FROM task CROSS JOIN busy CROSS JOIN ahead CROSS JOIN rate
LEFT JOIN dhara.queues AS q ON q.name = task.queue
LEFT JOIN dhara.workers AS worker ON task.status = 'RUNNING' AND worker.id = task.locked_by
LEFT JOIN LATERAL (
    SELECT w.* FROM dhara.workers AS w WHERE task.status = 'PENDING' AND task.type = ANY (w.types)
    ORDER BY w.beat_at DESC LIMIT 1
) AS last ON true

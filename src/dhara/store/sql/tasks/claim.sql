-- Claim ready tasks: PENDING -> RUNNING with a new lease each, lane by lane in the given order, above each lane's watermark.
-- $1 uuid worker · $2 text[] types it knows · $3 integer most tasks in all
-- $4 text[] queues, $5 smallint[] priorities, $6 timestamptz[] run_at and $7 uuid[] id of the lanes' watermarks
-- $8 integer[] most tasks of the lane's queue · $9 bytea 16 random bytes a task: its lease
WITH lane AS (
    SELECT l.* FROM unnest($4::text[], $5::smallint[], $6::timestamptz[], $7::uuid[], $8::integer[])
        WITH ORDINALITY AS l (queue, priority, run_at, id, room, ord)
    WHERE NOT EXISTS (SELECT FROM dhara.queues q WHERE q.name = l.queue AND q.paused_at IS NOT NULL)
    ORDER BY l.ord
), picked AS MATERIALIZED (
    -- Locks are taken row by row as the outer LIMIT asks, so no row is locked in vain.
    SELECT t.place, lane.room, lane.queue, lane.ord
    FROM lane CROSS JOIN LATERAL (
        SELECT ctid AS place FROM dhara.tasks
        WHERE status = 'PENDING' AND queue = lane.queue AND priority = lane.priority
          AND (run_at, id) > (lane.run_at, lane.id) AND run_at <= statement_timestamp()
          AND type = ANY ($2::text[]) AND (expires_at IS NULL OR expires_at > statement_timestamp())
        ORDER BY run_at, id
        LIMIT lane.room
        FOR UPDATE SKIP LOCKED
    ) AS t
    LIMIT $3
), roomy AS (
    -- Two lanes of one queue share its room.
    SELECT place, row_number() OVER () AS n
    FROM (SELECT place, room, row_number() OVER (PARTITION BY queue ORDER BY ord) AS nth FROM picked) AS p
    WHERE nth <= room
), claimed AS (
    -- By its place, which the lock keeps: looking each row up by its id again would cost a fifth more. The leases are drawn by
    -- the worker, since the database asks its system for each random number by itself.
    UPDATE dhara.tasks AS t
    SET status = 'RUNNING', lease = encode(substr($9::bytea, (roomy.n * 16 - 15)::integer, 16), 'hex')::uuid,
        locked_by = $1, attempts = t.attempts + 1,
        unique_slot = CASE WHEN t.unique_scope <> 'pending' THEN t.unique_slot END, logs = NULL,
        claim_seq = nextval('dhara.task_history_seq'), started_at = clock_timestamp(), updated_at = clock_timestamp()
    FROM roomy WHERE t.ctid = roomy.place
    RETURNING t.id, t.lease, t.type, t.queue, t.priority, t.run_at, t.payload, t.attempts, t.failures, t.crashes, t.snoozes,
              t.generation, t.max_retries, t.timeout, t.traceparent, t.started_at
), counted AS (
    INSERT INTO dhara.counters (n, queue, event, from_state, to_state)
    SELECT count(*), queue, 'CLAIMED', 'PENDING', 'RUNNING' FROM claimed GROUP BY queue
)
SELECT * FROM claimed ORDER BY queue, priority DESC, run_at, id

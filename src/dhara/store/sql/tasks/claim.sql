-- Claim ready tasks: PENDING -> RUNNING with a new lease each, lane by lane in the given order, above each lane's watermark.
-- $1 uuid worker · $2 text[] types it knows · $3 integer most tasks in all
-- $4 text[] queues, $5 smallint[] priorities, $6 timestamptz[] run_at and $7 uuid[] id of the lanes' watermarks
-- $8 integer[] most tasks of the lane's queue
WITH lane AS (
    SELECT l.* FROM unnest($4::text[], $5::smallint[], $6::timestamptz[], $7::uuid[], $8::integer[])
        WITH ORDINALITY AS l (queue, priority, run_at, id, room, ord)
    WHERE NOT EXISTS (SELECT FROM dhara.queues q WHERE q.name = l.queue AND q.paused_at IS NOT NULL)
    ORDER BY l.ord
), picked AS MATERIALIZED (
    -- Locks are taken row by row as the outer LIMIT asks, so no row is locked in vain.
    SELECT t.id, lane.room, lane.queue, lane.ord
    FROM lane CROSS JOIN LATERAL (
        SELECT id FROM dhara.tasks
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
    SELECT id FROM (SELECT id, room, row_number() OVER (PARTITION BY queue ORDER BY ord) AS nth FROM picked) AS p
    WHERE nth <= room
), claimed AS (
    UPDATE dhara.tasks AS t
    SET status = 'RUNNING', lease = gen_random_uuid(), locked_by = $1, attempts = t.attempts + 1,
        unique_slot = CASE WHEN t.unique_scope <> 'pending' THEN t.unique_slot END, logs = NULL,
        claim_seq = nextval('dhara.task_history_seq'), started_at = clock_timestamp(), updated_at = clock_timestamp()
    FROM roomy WHERE t.id = roomy.id
    RETURNING t.id, t.lease, t.type, t.queue, t.priority, t.run_at, t.payload, t.attempts, t.failures, t.crashes, t.snoozes,
              t.generation, t.max_retries, t.timeout, t.idempotency_key, t.traceparent, t.created_at, t.started_at
), counted AS (
    INSERT INTO dhara.counters (n, queue, event, from_state, to_state)
    SELECT count(*), queue, 'CLAIMED', 'PENDING', 'RUNNING' FROM claimed GROUP BY queue
)
SELECT * FROM claimed ORDER BY queue, priority DESC, run_at, id

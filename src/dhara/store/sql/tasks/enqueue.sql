-- Enqueue one task or many; all in one statement, one commit.
-- Rows whose id, idempotency key or unique key stands already are skipped; `existing.sql` fetches those.
-- $1 uuid[] ids · $2 text[] types · $3 text[] queues · $4 text[] payloads (JSON text, kept byte for byte)
-- $5 smallint[] priorities · $6 smallint[] max_retries · $7 timestamptz[] run_at (NULL: now)
-- $8 float8[] delays, seconds from now (NULL: none) · $9 text[] idempotency keys · $10 text[] rare fields, a JSON object or NULL
WITH now AS MATERIALIZED (
    SELECT clock_timestamp() AS at
), new AS (
    INSERT INTO dhara.tasks (id, type, queue, payload, priority, max_retries, run_at, created_at, updated_at,
                             idempotency_key, timeout, expires_at, tags, concurrency_key, traceparent, retention,
                             unique_key, unique_slot, unique_scope, unique_until)
    SELECT t.id, t.type, t.queue, t.payload::json, t.priority, t.max_retries,
           -- A time in the past counts as now: claims walk above a watermark and must not be undercut.
           GREATEST(COALESCE(t.run_at, now.at + t.delay * interval '1 second'), now.at), now.at, now.at,
           t.idempotency_key, (t.rare->>'timeout')::float8, (t.rare->>'expires_at')::timestamptz,
           CASE WHEN t.rare IS NOT NULL THEN ARRAY(SELECT json_array_elements_text(t.rare->'tags')) END,
           t.rare->>'concurrency_key', t.rare->>'traceparent', (t.rare->>'retention')::float8,
           t.rare->>'unique_key', t.rare->>'unique_key', t.rare->>'unique_scope',
           now.at + (t.rare->>'unique_seconds')::float8 * interval '1 second'
    FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::smallint[], $6::smallint[],
                $7::timestamptz[], $8::float8[], $9::text[], $10::json[])
         AS t (id, type, queue, payload, priority, max_retries, run_at, delay, idempotency_key, rare)
    CROSS JOIN now
    -- Keys are taken in one order by all, so that two batches with the same keys wait for each other, but never deadlock.
    -- Unique keys first: idempotency keys are often random, one a try, and would bring the others into any order.
    ORDER BY t.type COLLATE "C", (t.rare->>'unique_key') COLLATE "C", t.idempotency_key COLLATE "C", t.id
    ON CONFLICT DO NOTHING
    RETURNING id, queue, created_at, run_at
), counted AS (
    INSERT INTO dhara.counters (n, queue, event, from_state, to_state)
    SELECT count(*), queue, 'ENQUEUED', NULL, 'PENDING' FROM new GROUP BY queue
)
SELECT id, created_at, run_at FROM new

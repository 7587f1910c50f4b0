-- The flows of tasks that were enqueued by COPY, in its transaction.
-- $1 bigint[] numbers · $2 text[] queues
INSERT INTO dhara.counters (n, queue, event, from_state, to_state)
SELECT n, queue, 'ENQUEUED', NULL, 'PENDING' FROM unnest($1::bigint[], $2::text[]) AS t (n, queue)

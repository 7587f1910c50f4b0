-- Enqueue tasks of which each is new and due at once: no key, no time, no rare field. As `enqueue.sql`, at two thirds of its cost:
-- nothing can be in the way, so that nothing is looked for; an id that stands already is a unique violation.
-- $1 uuid[] ids · $2 text[] types · $3 text[] queues · $4 text[] payloads (JSON text, kept byte for byte)
-- $5 smallint[] priorities · $6 smallint[] max_retries · $7 bigint[] numbers of tasks · $8 text[] of which queue
-- $9 text the channel to wake sleeping workers by; empty: tell nobody
WITH now AS MATERIALIZED (
    SELECT clock_timestamp() AS at
), new AS (
    INSERT INTO dhara.tasks (id, type, queue, payload, priority, max_retries, run_at, created_at, updated_at)
    SELECT t.id, t.type, t.queue, t.payload::json, t.priority, t.max_retries, now.at, now.at, now.at
    FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::smallint[], $6::smallint[])
         AS t (id, type, queue, payload, priority, max_retries)
    CROSS JOIN now
    RETURNING 1
), counted AS (
    INSERT INTO dhara.counters (n, queue, event, from_state, to_state)
    SELECT c.n, c.queue, 'ENQUEUED', NULL, 'PENDING' FROM unnest($7::bigint[], $8::text[]) AS c (n, queue)
)
SELECT at,
       -- A commit that notifies waits for every other one that does. So only who sleeps is told, and under load nobody does: each
       -- worker that sleeps holds a lock that is tried here, after the insert: one for its queue, or one for all. In a queue of
       -- notifications that is full (somebody listens and idles in a transaction) the commit would fail; workers look by
       -- themselves, too.
       CASE WHEN $9::text <> '' AND made.n > 0 THEN (
           SELECT count(pg_notify($9, q.queue)) FROM unnest($8::text[]) AS q (queue)
           WHERE CASE WHEN CASE WHEN pg_try_advisory_lock(hashtextextended($9, 0))
                                THEN pg_advisory_unlock(hashtextextended($9, 0)) ELSE false END
                       AND CASE WHEN pg_try_advisory_lock(hashtextextended($9 || ' ' || q.queue, 0))
                                THEN pg_advisory_unlock(hashtextextended($9 || ' ' || q.queue, 0)) ELSE false END
                 THEN false ELSE pg_notification_queue_usage() < 0.5 END
       ) END AS told
FROM now, (SELECT count(*) AS n FROM new) AS made

-- Put on record that stale settlements were refused; no state changes.
-- $1 uuid[] ids · $2 uuid[] leases · $3 integer[] attempts · $4 uuid worker · $5 text[] events they wished for
WITH refused AS (
    INSERT INTO dhara.task_history (task_id, lease, worker_id, generation, attempt, event, reason)
    SELECT k.id, k.lease, $4, t.generation, k.attempt, 'SETTLE_REJECTED', 'lost lease; wished ' || k.event
    FROM unnest($1::uuid[], $2::uuid[], $3::integer[], $5::text[]) AS k (id, lease, attempt, event)
    JOIN dhara.tasks AS t ON t.id = k.id
    RETURNING task_id
)
INSERT INTO dhara.counters (n, queue, event, from_state, to_state)
SELECT count(*), t.queue, 'SETTLE_REJECTED', NULL, NULL
FROM refused AS r JOIN dhara.tasks AS t ON t.id = r.task_id GROUP BY t.queue

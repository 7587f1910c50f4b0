-- The heartbeat of one or more workers of a host, one row each. A lost worker that beats again is live again:
-- its old leases are gone, its slots are not. Answers whether an operator wants it to drain.
-- $1 uuid[] ids · $2 integer[] running tasks
UPDATE dhara.workers AS w
SET beat_at = clock_timestamp(), beat_seq = w.beat_seq + 1, running = b.running,
    state = CASE WHEN w.state = 'lost' THEN 'live' ELSE w.state END, stopped_at = NULL
-- In the order of ids, so that two keepers' beats never deadlock.
FROM (SELECT * FROM unnest($1::uuid[], $2::integer[]) AS b (id, running) ORDER BY id) AS b
WHERE w.id = b.id AND w.state <> 'stopped'
RETURNING w.id, EXISTS (SELECT FROM dhara.worker_drains AS d WHERE d.worker = w.id) AS drain

-- Live and lately lost workers, newest first.
-- $1 float8 seconds that a stopped or lost worker is still shown
-- $2 uuid only this one
SELECT w.id, w.host, w.pid, w.version, w.types, w.queues, w.slots, w.running,
       -- Until it has heard, it says otherwise.
       CASE WHEN w.state = 'live' AND d.worker IS NOT NULL THEN 'draining' ELSE w.state END AS state,
       w.started_at, w.beat_at, w.stopped_at, EXTRACT(EPOCH FROM clock_timestamp() - w.beat_at)::float8 AS beat_age,
       d.requested_at AS drain_requested_at, d.requested_by AS drain_requested_by
FROM dhara.workers AS w LEFT JOIN dhara.worker_drains AS d ON d.worker = w.id
WHERE (w.state IN ('live', 'draining') OR COALESCE(w.stopped_at, w.beat_at) > clock_timestamp() - $1 * interval '1 second')
  AND ($2::uuid IS NULL OR w.id = $2)
ORDER BY w.started_at DESC, w.id

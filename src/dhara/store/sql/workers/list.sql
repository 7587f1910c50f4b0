-- Live and lately lost workers, newest first.
-- $1 float8 seconds that a stopped or lost worker is still shown
SELECT id, host, pid, version, types, queues, slots, running, state, started_at, beat_at, stopped_at,
       EXTRACT(EPOCH FROM clock_timestamp() - beat_at)::float8 AS beat_age
FROM dhara.workers
WHERE state IN ('live', 'draining') OR COALESCE(stopped_at, beat_at) > clock_timestamp() - $1 * interval '1 second'
ORDER BY started_at DESC, id

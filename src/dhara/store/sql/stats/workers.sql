-- Live workers, their slots, what they run by their own last beat, and the age of the oldest of these beats.
SELECT count(*) AS workers, COALESCE(sum(slots), 0)::bigint AS slots, COALESCE(sum(running), 0)::bigint AS running,
       COALESCE(max(EXTRACT(EPOCH FROM clock_timestamp() - beat_at)), 0)::float8 AS beat_age
FROM dhara.workers WHERE state IN ('live', 'draining')

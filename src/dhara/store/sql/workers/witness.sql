-- What a reaper watches: each worker that is not known to be gone or still holds tasks, its beat and the age of it.
SELECT w.id, w.beat_seq, w.state, EXTRACT(EPOCH FROM clock_timestamp() - w.beat_at)::float8 AS age
FROM dhara.workers AS w
WHERE w.state IN ('live', 'draining')
   OR EXISTS (SELECT FROM dhara.tasks AS t WHERE t.status = 'RUNNING' AND t.locked_by = w.id)

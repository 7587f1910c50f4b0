-- Workers gone for long leave, unless a task still names them as its holder.
-- $1 float8 seconds
DELETE FROM dhara.workers AS w
WHERE w.state IN ('stopped', 'lost') AND COALESCE(w.stopped_at, w.beat_at) < clock_timestamp() - $1 * interval '1 second'
  AND NOT EXISTS (SELECT FROM dhara.tasks AS t WHERE t.status = 'RUNNING' AND t.locked_by = w.id)

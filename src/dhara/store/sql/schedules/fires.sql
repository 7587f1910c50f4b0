-- A schedule's fires, newest first; of their tasks those that lie in one of the queues.
-- $1 text schedule · $2 integer most · $3 text[] patterns (LIKE) of queues, or NULL for all
SELECT f.fire_at, f.fired_at, f.outcome, CASE WHEN shown THEN f.task_id END AS task_id, CASE WHEN shown THEN t.status END AS status
FROM dhara.schedule_fires AS f LEFT JOIN dhara.tasks AS t ON t.id = f.task_id
CROSS JOIN LATERAL (SELECT $3::text[] IS NULL OR t.queue LIKE ANY ($3::text[]) AS shown) AS seen
WHERE f.schedule = $1 ORDER BY f.fire_at DESC LIMIT $2

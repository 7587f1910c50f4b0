-- A schedule's fires, newest first.
-- $1 text schedule · $2 integer most
SELECT f.fire_at, f.fired_at, f.task_id, f.outcome, t.status FROM dhara.schedule_fires AS f
LEFT JOIN dhara.tasks AS t ON t.id = f.task_id
WHERE f.schedule = $1 ORDER BY f.fire_at DESC LIMIT $2

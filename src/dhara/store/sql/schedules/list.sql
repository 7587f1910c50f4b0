-- Schedules by name; `seen_task`: the last one's, if it lies in one of the queues.
-- $1 text one name, or NULL for all · $2 integer most rows · $3 text[] patterns (LIKE) of queues, or NULL for all
SELECT s.*, CASE WHEN $3::text[] IS NULL OR t.queue LIKE ANY ($3::text[]) THEN s.last_task END AS seen_task
FROM dhara.schedules AS s LEFT JOIN dhara.tasks AS t ON t.id = s.last_task
WHERE $1::text IS NULL OR s.name = $1 ORDER BY s.name LIMIT $2

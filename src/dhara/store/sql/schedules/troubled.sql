-- Schedules that do not do what they should, the worst first: what is wrong (broken: it could not be fired, and dhara has
-- paused it; overdue: nobody fires it; failed: its last task is DEAD; missed: paused, and a fire time has passed), and since when.
-- $1 float8 seconds that a fire may be late · $2 integer most rows
SELECT found.name, found.queue, found.trouble, found.since, found.paused_by, found.last_task
FROM (
    SELECT s.name, s.queue, s.paused_by, s.last_task,
           CASE WHEN s.paused_by LIKE 'dhara: %' THEN 'broken'
                WHEN s.paused_at IS NULL AND s.next_at < clock_timestamp() - $1 * interval '1 second' THEN 'overdue'
                WHEN last.status = 'DEAD' THEN 'failed'
                WHEN s.paused_at IS NOT NULL AND s.next_at < clock_timestamp() THEN 'missed' END AS trouble,
           CASE WHEN s.paused_by LIKE 'dhara: %' THEN s.paused_at
                WHEN last.status = 'DEAD' AND (s.paused_at IS NOT NULL OR s.next_at >= clock_timestamp() - $1 * interval '1 second')
                THEN last.completed_at ELSE s.next_at END AS since
    FROM dhara.schedules AS s LEFT JOIN dhara.tasks AS last ON last.id = s.last_task
) AS found
WHERE found.trouble IS NOT NULL
ORDER BY array_position('{broken,overdue,failed,missed}'::text[], found.trouble), found.since
LIMIT $2

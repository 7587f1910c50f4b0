-- I7: attempts of one task never overlap, by the times of the database.
WITH held AS (
    SELECT task_id, attempt, started_at, ended_at,
           lag(COALESCE(ended_at, 'infinity')) OVER (PARTITION BY task_id ORDER BY attempt) AS freed_at
    FROM dhara.attempts
)
SELECT 'attempts overlap' AS what, task_id,
       format('attempt %s from %s to %s; the one before ended %s', attempt, started_at, ended_at, freed_at) AS detail
FROM held WHERE started_at < freed_at OR ended_at < started_at

-- Forget fires older than $1 seconds, at most $2.
-- $1 float8 seconds · $2 integer most
DELETE FROM dhara.schedule_fires WHERE (schedule, fire_at) IN (
    SELECT schedule, fire_at FROM dhara.schedule_fires
    WHERE fired_at < clock_timestamp() - $1 * interval '1 second' LIMIT $2)

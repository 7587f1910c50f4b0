-- Schedules by name.
-- $1 text one name, or NULL for all · $2 integer most rows
SELECT * FROM dhara.schedules WHERE $1::text IS NULL OR name = $1 ORDER BY name LIMIT $2

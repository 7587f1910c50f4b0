-- Schedules that are due, or will be within $1 seconds, and in how many seconds.
-- $1 float8 seconds · $2 integer most
SELECT name, next_at, EXTRACT(EPOCH FROM next_at - clock_timestamp())::float8 AS due_in FROM dhara.schedules
WHERE paused_at IS NULL AND next_at <= clock_timestamp() + $1 * interval '1 second' ORDER BY next_at LIMIT $2

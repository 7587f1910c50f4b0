-- Forget samples older than $1 seconds.
-- $1 float8 seconds
DELETE FROM dhara.rates WHERE minute < statement_timestamp() - $1 * interval '1 second'

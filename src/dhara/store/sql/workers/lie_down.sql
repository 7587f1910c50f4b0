-- Hold what says that this worker sleeps, for as long as the session lives. In one order, so that nobody waits in a circle.
-- $1 text[] names of the locks
SELECT pg_advisory_lock_shared(key)
FROM (SELECT hashtextextended(name, 0) AS key FROM unnest($1::text[]) AS l (name) ORDER BY 1) AS l

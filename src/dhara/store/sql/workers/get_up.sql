-- Let go of what says that this worker sleeps.
-- $1 text[] names of the locks
SELECT pg_advisory_unlock_shared(hashtextextended(name, 0)) FROM unnest($1::text[]) AS l (name)

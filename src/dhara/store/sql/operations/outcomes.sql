-- What has become of revived tasks: how many are COMPLETED, and how many have failed again. Tasks that are gone or were
-- canceled speak for nothing, and count as completed.
-- $1 uuid[] ids · $2 timestamptz when they were revived
SELECT count(*) FILTER (WHERE t.id IS NULL OR t.status IN ('COMPLETED', 'CANCELED')) AS completed,
       count(*) FILTER (WHERE t.status = 'DEAD' OR (t.status IN ('PENDING', 'RUNNING') AND t.failures > 0)) AS failed,
       EXTRACT(EPOCH FROM clock_timestamp() - $2::timestamptz)::float8 AS age
FROM unnest($1::uuid[]) AS k (id) LEFT JOIN dhara.tasks AS t ON t.id = k.id

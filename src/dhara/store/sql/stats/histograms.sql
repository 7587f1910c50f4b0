-- The fleet's histograms, at most $1 of them.
-- $1 integer
SELECT name, queue, type, total, buckets FROM dhara.histograms ORDER BY name, queue, type LIMIT $1

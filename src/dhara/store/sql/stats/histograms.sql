-- The fleet's histograms, at most $1 of them. Buckets as text: for a type of array that it has not met on this connection the
-- driver asks the catalogue, and that takes longer than all that a scrape asks.
-- $1 integer
SELECT name, queue, type, total, array_to_string(buckets, ',') AS buckets FROM dhara.histograms ORDER BY name, queue, type LIMIT $1

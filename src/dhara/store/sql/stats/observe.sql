-- Add a worker's observations to the fleet's histograms.
-- $1 text[] names · $2 text[] queues · $3 text[] types · $4 float8[] sums in seconds · $5 text[] bucket counts as array literals
INSERT INTO dhara.histograms AS h (name, queue, type, total, buckets)
SELECT name, queue, type, total, buckets::bigint[]
FROM unnest($1::text[], $2::text[], $3::text[], $4::float8[], $5::text[]) AS o (name, queue, type, total, buckets)
ORDER BY name, queue, type
ON CONFLICT (name, queue, type) DO UPDATE
SET total = h.total + EXCLUDED.total,
    buckets = ARRAY(SELECT a + b FROM unnest(h.buckets, EXCLUDED.buckets) WITH ORDINALITY AS u (a, b, i) ORDER BY i)

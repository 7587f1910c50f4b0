-- A session that lasts.
-- $1 bytea digest of its name · $2 float8 longest idle time · $3 float8 longest life, seconds
SELECT key_id, proof, EXTRACT(EPOCH FROM clock_timestamp() - seen_at)::float8 AS idle
FROM dhara.sessions
WHERE digest = $1 AND seen_at >= clock_timestamp() - $2 * interval '1 second'
  AND created_at >= clock_timestamp() - $3 * interval '1 second'

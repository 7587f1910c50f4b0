-- A session is used.
-- $1 bytea digest of its name
UPDATE dhara.sessions SET seen_at = clock_timestamp() WHERE digest = $1

-- Begin a session; those that have ended go, and beyond so many those that have been idle longest.
-- $1 bytea digest of its name · $2 bytea proof · $3 text id of the key · $4 float8 longest idle time · $5 float8 longest life, seconds
-- $6 bigint most
WITH ended AS (
    DELETE FROM dhara.sessions WHERE digest IN (
        SELECT digest FROM dhara.sessions
        WHERE seen_at < clock_timestamp() - $4 * interval '1 second' OR created_at < clock_timestamp() - $5 * interval '1 second'
           OR seen_at <= (SELECT seen_at FROM dhara.sessions ORDER BY seen_at DESC OFFSET $6 - 1 LIMIT 1)
        FOR UPDATE SKIP LOCKED)
)
INSERT INTO dhara.sessions (digest, proof, key_id) VALUES ($1, $2, $3)

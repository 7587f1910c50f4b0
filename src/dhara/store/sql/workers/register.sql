-- A worker announces itself, before its first claim.
-- $1 uuid id · $2 integer pid · $3 text host · $4 text version · $5 text[] types · $6 text queues (JSON) · $7 integer slots
INSERT INTO dhara.workers (id, pid, host, version, types, queues, slots)
VALUES ($1, $2, $3, $4, $5::text[], $6::text::json, $7)
ON CONFLICT (id) DO NOTHING

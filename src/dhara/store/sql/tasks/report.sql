-- Progress and log lines of running attempts, guarded by lease; no state changes.
-- $1 uuid[] ids · $2 uuid[] leases · $3 text[] progress (JSON or NULL) · $4 text[] log lines (JSON or NULL)
UPDATE dhara.tasks AS t
SET progress = COALESCE(r.progress::json, t.progress), logs = COALESCE(r.logs::json, t.logs)
-- In the order of ids, as settlements lock their rows, so that the two never deadlock.
FROM (SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::text[]) AS r (id, lease, progress, logs) ORDER BY id) AS r
WHERE t.id = r.id AND t.status = 'RUNNING' AND t.lease = r.lease

-- DEAD tasks by fingerprint, those seen last first: how many (counted up to $1 a group), first and last seen, how many in
-- each of the last 24 hours (this hour first), and the newest as a sample. A loose scan: a few index probes a group.
-- $1 integer cap of counts · $2 integer most groups to look at · $3 text one group's fingerprint, or NULL
WITH RECURSIVE print AS (
    (SELECT fingerprint FROM dhara.tasks WHERE status = 'DEAD' AND fingerprint IS NOT NULL
       AND ($3::text IS NULL OR fingerprint = $3) ORDER BY fingerprint LIMIT 1)
    UNION ALL
    SELECT next.fingerprint FROM print CROSS JOIN LATERAL (
        SELECT fingerprint FROM dhara.tasks WHERE status = 'DEAD' AND fingerprint > print.fingerprint
           AND $3::text IS NULL ORDER BY fingerprint LIMIT 1
    ) AS next
), prints AS MATERIALIZED (
    SELECT fingerprint FROM print LIMIT $2
)
SELECT p.fingerprint, seen.count, seen.count >= $1 AS count_is_estimate, first.completed_at AS first_at,
       sample.completed_at AS last_at, trend.trend, sample.id AS sample, sample.type, sample.queue, sample.reason,
       sample.last_error, sample.attempts, muted.muted_at, muted.muted_by
FROM prints AS p
CROSS JOIN LATERAL (
    SELECT count(*) AS count FROM (
        SELECT FROM dhara.tasks AS t WHERE t.status = 'DEAD' AND t.fingerprint = p.fingerprint LIMIT $1) AS t
) AS seen
CROSS JOIN LATERAL (
    SELECT completed_at FROM dhara.tasks AS t WHERE t.status = 'DEAD' AND t.fingerprint = p.fingerprint
    ORDER BY t.completed_at LIMIT 1
) AS first
CROSS JOIN LATERAL (
    SELECT * FROM dhara.tasks AS t WHERE t.status = 'DEAD' AND t.fingerprint = p.fingerprint
    ORDER BY t.completed_at DESC LIMIT 1
) AS sample
CROSS JOIN LATERAL (
    SELECT ARRAY(
        SELECT count(recent.hour) FROM generate_series(0, 23) AS hours (hour) LEFT JOIN (
            SELECT floor(EXTRACT(EPOCH FROM statement_timestamp() - t.completed_at) / 3600)::integer AS hour
            FROM (SELECT completed_at FROM dhara.tasks AS t
                  WHERE t.status = 'DEAD' AND t.fingerprint = p.fingerprint
                    AND t.completed_at > statement_timestamp() - interval '24 hours'
                  ORDER BY t.completed_at DESC LIMIT $1) AS t
        ) AS recent ON recent.hour = hours.hour
        GROUP BY hours.hour ORDER BY hours.hour) AS trend
) AS trend
LEFT JOIN dhara.failure_groups AS muted ON muted.fingerprint = p.fingerprint
ORDER BY sample.completed_at DESC, p.fingerprint

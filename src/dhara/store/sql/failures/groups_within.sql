-- DEAD tasks by fingerprint as `groups` gives them, for whoever may see some queues only: of each group its newest $1 tasks
-- are looked at, and those in other queues left out. `elsewhere`: there were some of those.
-- $1 integer most tasks to look at in a group · $2 integer most groups to look at · $3 text one group's fingerprint, or NULL
-- · $4 text[] patterns (LIKE) of queues
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
), seen AS MATERIALIZED (
    SELECT p.fingerprint, t.id, t.completed_at, t.queue LIKE ANY ($4::text[]) AS visible
    FROM prints AS p CROSS JOIN LATERAL (
        SELECT id, completed_at, queue FROM dhara.tasks AS t WHERE t.status = 'DEAD' AND t.fingerprint = p.fingerprint
        ORDER BY t.completed_at DESC LIMIT $1) AS t
), found AS MATERIALIZED (
    SELECT fingerprint, count(*) FILTER (WHERE visible) AS count, count(*) >= $1 AS count_is_estimate,
           min(completed_at) FILTER (WHERE visible) AS first_at, max(completed_at) FILTER (WHERE visible) AS last_at,
           (array_agg(id ORDER BY completed_at DESC) FILTER (WHERE visible))[1] AS sample, NOT bool_and(visible) AS elsewhere
    FROM seen GROUP BY fingerprint HAVING bool_or(visible)
)
SELECT f.fingerprint, f.count, f.count_is_estimate, f.first_at, f.last_at, trend.trend, f.sample, f.elsewhere,
       sample.type, sample.queue, sample.reason, sample.last_error, sample.attempts, muted.muted_at, muted.muted_by
FROM found AS f
JOIN dhara.tasks AS sample ON sample.id = f.sample
CROSS JOIN LATERAL (
    SELECT ARRAY(
        SELECT count(s.id) FROM generate_series(0, 23) AS hours (hour)
        LEFT JOIN seen AS s ON s.fingerprint = f.fingerprint AND s.visible
             AND floor(EXTRACT(EPOCH FROM statement_timestamp() - s.completed_at) / 3600)::integer = hours.hour
        GROUP BY hours.hour ORDER BY hours.hour) AS trend
) AS trend
LEFT JOIN dhara.failure_groups AS muted ON muted.fingerprint = f.fingerprint
ORDER BY f.last_at DESC, f.fingerprint

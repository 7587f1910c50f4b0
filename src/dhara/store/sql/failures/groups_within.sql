-- DEAD tasks by fingerprint as `groups` gives them, for whoever may see some queues only: of each group its newest $1 tasks
-- are looked at, fewer where there are so many groups that it would be more than $1 * $2 in all, and those in other queues
-- left out, also of what counts as an estimate. `elsewhere`: there are some of those, or there may be beyond the look.
-- $1 bigint most tasks to look at in a group · $2 integer most groups · $3 text one group's fingerprint, or NULL
-- · $4 text[] patterns (LIKE) of queues · $5 bigint most groups to look at
WITH RECURSIVE print AS (
    (SELECT fingerprint FROM dhara.tasks WHERE status = 'DEAD' AND fingerprint IS NOT NULL
       AND ($3::text IS NULL OR fingerprint = $3) ORDER BY fingerprint LIMIT 1)
    UNION ALL
    SELECT next.fingerprint FROM print CROSS JOIN LATERAL (
        SELECT fingerprint FROM dhara.tasks WHERE status = 'DEAD' AND fingerprint > print.fingerprint
           AND $3::text IS NULL ORDER BY fingerprint LIMIT 1
    ) AS next
), prints AS MATERIALIZED (
    SELECT fingerprint FROM print LIMIT $5
), look AS MATERIALIZED (
    SELECT GREATEST(1, LEAST($1::bigint, $1::bigint * $2::integer / GREATEST(1, count(*)))) AS most FROM prints
), seen AS MATERIALIZED (
    SELECT p.fingerprint, t.id, t.completed_at, t.queue LIKE ANY ($4::text[]) AS visible
    FROM prints AS p CROSS JOIN LATERAL (
        SELECT id, completed_at, queue FROM dhara.tasks AS t WHERE t.status = 'DEAD' AND t.fingerprint = p.fingerprint
        ORDER BY t.completed_at DESC LIMIT (SELECT most FROM look)) AS t
), found AS MATERIALIZED (
    SELECT fingerprint, count(*) FILTER (WHERE visible) AS count,
           count(*) FILTER (WHERE visible) >= (SELECT most FROM look) AS count_is_estimate,
           min(completed_at) FILTER (WHERE visible) AS first_at, max(completed_at) FILTER (WHERE visible) AS last_at,
           (array_agg(id ORDER BY completed_at DESC) FILTER (WHERE visible))[1] AS sample,
           NOT bool_and(visible) OR count(*) >= (SELECT most FROM look) AS elsewhere
    FROM seen GROUP BY fingerprint HAVING bool_or(visible) ORDER BY last_at DESC, fingerprint LIMIT $2
), died AS MATERIALIZED (
    SELECT fingerprint, floor(EXTRACT(EPOCH FROM statement_timestamp() - completed_at) / 3600)::integer AS hour, count(*) AS n
    FROM seen WHERE visible AND completed_at > statement_timestamp() - interval '24 hours' GROUP BY 1, 2
)
SELECT f.fingerprint, f.count, f.count_is_estimate, f.first_at, f.last_at, trend.trend, f.sample, f.elsewhere,
       sample.type, sample.queue, sample.reason, sample.last_error, sample.attempts, muted.muted_at, muted.muted_by
FROM found AS f
JOIN dhara.tasks AS sample ON sample.id = f.sample
JOIN (
    SELECT one.fingerprint, array_agg(COALESCE(died.n, 0) ORDER BY hours.hour) AS trend
    FROM found AS one CROSS JOIN generate_series(0, 23) AS hours (hour)
    LEFT JOIN died ON died.fingerprint = one.fingerprint AND died.hour = hours.hour GROUP BY one.fingerprint
) AS trend ON trend.fingerprint = f.fingerprint
LEFT JOIN dhara.failure_groups AS muted ON muted.fingerprint = f.fingerprint
ORDER BY f.last_at DESC, f.fingerprint

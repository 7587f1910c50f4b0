-- I24: no session of dhara's own stands idle in a transaction, and none holds an advisory lock for long, but for listeners: the
-- lock of theirs says that their worker sleeps.
-- Handlers' own transactions are theirs: a session of theirs counts once it has been idle for $2.
-- $1 float8 seconds that dhara's own may be idle in a transaction · $2 float8 the same for handlers' sessions
SELECT 'idle in a transaction' AS what, NULL::uuid AS task_id,
       format('pid %s (%s), for %s', pid, application_name, clock_timestamp() - state_change) AS detail
FROM pg_stat_activity
WHERE datname = current_database() AND application_name LIKE 'dhara%' AND state LIKE 'idle in transaction%'
  AND state_change < clock_timestamp() - interval '1 second'
      * CASE WHEN application_name = 'dhara handler' THEN $2::float8 ELSE $1::float8 END
UNION ALL
SELECT 'an advisory lock is held', NULL, format('pid %s (%s), idle for %s', a.pid, a.application_name, clock_timestamp() - a.state_change)
FROM pg_locks AS l JOIN pg_stat_activity AS a ON a.pid = l.pid
WHERE l.locktype = 'advisory' AND a.datname = current_database() AND a.application_name LIKE 'dhara%' AND a.state = 'idle'
  AND a.application_name <> 'dhara listener'
  AND a.state_change < clock_timestamp() - interval '1 second' * $1::float8

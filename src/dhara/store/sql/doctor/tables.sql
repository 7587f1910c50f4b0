-- Rows of the schema's tables by the statistics, and how many seconds ago they were vacuumed.
-- $1 text schema
SELECT relname::text AS name, n_live_tup AS live, n_dead_tup AS dead,
       EXTRACT(EPOCH FROM clock_timestamp() - GREATEST(last_vacuum, last_autovacuum))::float8 AS vacuumed
FROM pg_stat_user_tables WHERE schemaname = $1 ORDER BY n_dead_tup DESC, relname

-- How the database fares as far as dhara feels it: dead and live rows of its tables by the statistics, the age of the oldest
-- transaction, and how full the queue of notifications is.
-- $1 text schema
SELECT COALESCE((SELECT sum(n_dead_tup) FROM pg_stat_user_tables WHERE schemaname = $1), 0)::bigint AS dead_rows,
       COALESCE((SELECT sum(n_live_tup) FROM pg_stat_user_tables WHERE schemaname = $1), 0)::bigint AS live_rows,
       COALESCE((SELECT EXTRACT(EPOCH FROM clock_timestamp() - min(xact_start)) FROM pg_stat_activity
                 WHERE backend_xmin IS NOT NULL AND pid <> pg_backend_pid() AND datname = current_database()), 0)::float8
           AS oldest_transaction,
       pg_notification_queue_usage()::float8 AS notify_usage

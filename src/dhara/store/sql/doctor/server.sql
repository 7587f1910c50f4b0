-- The server's version, settings and load, as a doctor wants to know them.
SELECT current_setting('server_version_num')::integer AS server_version, current_setting('server_version') AS version_text,
       pg_is_in_recovery() AS standby, current_setting('transaction_read_only') = 'on' AS read_only,
       current_user::text AS role, current_setting('autovacuum') = 'on' AS autovacuum, current_setting('fsync') = 'on' AS fsync,
       current_setting('synchronous_commit') AS synchronous_commit,
       (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend') AS connections,
       current_setting('max_connections')::integer AS max_connections,
       pg_notification_queue_usage()::float8 AS notify_usage, clock_timestamp() AS now

-- Who keeps vacuum from removing rows: sessions, prepared transactions, replication slots; the oldest first.
SELECT 'session' AS kind,
       pid || ' (' || COALESCE(NULLIF(application_name, ''), 'no name') || ', ' || COALESCE(state, 'unknown') || ')' AS name,
       COALESCE(EXTRACT(EPOCH FROM clock_timestamp() - xact_start), 0)::float8 AS age
FROM pg_stat_activity
WHERE datname = current_database() AND backend_xmin IS NOT NULL AND pid <> pg_backend_pid()
UNION ALL
SELECT 'prepared transaction', gid, EXTRACT(EPOCH FROM clock_timestamp() - prepared)::float8
FROM pg_prepared_xacts WHERE database = current_database()
ORDER BY age DESC LIMIT 20

-- When this database's schema was made: the same for every process, never the same for two databases.
SELECT applied_at::text || checksum FROM dhara.migrations ORDER BY version LIMIT 1

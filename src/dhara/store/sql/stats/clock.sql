-- Is the database there and writable, and what time is it?
SELECT clock_timestamp() AS now, pg_is_in_recovery() AS standby, current_setting('transaction_read_only') = 'on' AS read_only

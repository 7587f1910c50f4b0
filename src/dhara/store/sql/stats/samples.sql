-- The samples of one queue (`*`: of all) of the last minutes, oldest first, and the totals as they are now behind them.
-- $1 text queue · $2 integer minutes
SELECT minute, at, enqueued, completed, failed, dead, depth FROM dhara.rates
WHERE queue = $1 AND minute >= date_trunc('minute', statement_timestamp()) - $2 * interval '1 minute'
UNION ALL
SELECT date_trunc('minute', statement_timestamp()) + interval '1 minute', statement_timestamp(),
       COALESCE(sum(n) FILTER (WHERE event = 'ENQUEUED'), 0)::bigint,
       COALESCE(sum(n) FILTER (WHERE event = 'COMPLETED'), 0)::bigint,
       COALESCE(sum(n) FILTER (WHERE event IN ('RETRIED', 'REAPED') OR (event = 'DEAD' AND from_state = 'RUNNING')), 0)::bigint,
       COALESCE(sum(n) FILTER (WHERE event IN ('DEAD', 'EXPIRED')), 0)::bigint,
       (COALESCE(sum(n) FILTER (WHERE to_state = 'PENDING'), 0)
        - COALESCE(sum(n) FILTER (WHERE from_state = 'PENDING'), 0))::bigint
FROM dhara.counters WHERE $1 = '*' OR queue = $1
ORDER BY 1

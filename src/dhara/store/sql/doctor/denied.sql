-- What this role may not do with the schema's tables, of what servers and workers need.
-- $1 text schema
SELECT privilege || ' ' || c.relname AS denied
FROM pg_class AS c CROSS JOIN (VALUES ('SELECT'), ('INSERT'), ('UPDATE')) AS p (privilege)
WHERE c.relnamespace = $1::text::regnamespace AND c.relkind = 'r'
  AND c.relname IN ('tasks', 'task_history', 'workers', 'queues', 'counters', 'leaders', 'schedules')
  AND (c.relname, privilege) NOT IN (('task_history', 'UPDATE'), ('counters', 'UPDATE'))
  AND NOT has_table_privilege(c.oid, privilege)
ORDER BY 1

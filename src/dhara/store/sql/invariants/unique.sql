-- I17: never two live tasks with one unique key; who is live keeps others out, for as long as its scope says.
WITH live AS (
    SELECT * FROM dhara.tasks WHERE unique_key IS NOT NULL AND status IN ('PENDING', 'RUNNING')
)
SELECT 'two open tasks of one unique key' AS what, min(id::text)::uuid AS task_id,
       format('%s, key %L: %s', type, unique_key, string_agg(id::text, ' ' ORDER BY id)) AS detail
FROM live WHERE unique_scope = 'open' GROUP BY type, unique_key HAVING count(*) > 1
UNION ALL
SELECT 'two of one unique key wait that were never claimed', min(id::text)::uuid,
       format('%s, key %L: %s', type, unique_key, string_agg(id::text, ' ' ORDER BY id))
FROM live WHERE unique_scope = 'pending' AND status = 'PENDING' AND attempts = 0
GROUP BY type, unique_key HAVING count(*) > 1
UNION ALL
SELECT 'open, and keeps nobody out', id, format('%s, key %L', type, unique_key)
FROM live WHERE unique_scope = 'open' AND unique_slot IS NULL
UNION ALL
SELECT 'final, and keeps others out', id, format('%s, key %L', type, unique_key)
FROM dhara.tasks WHERE unique_slot IS NOT NULL AND unique_scope <> 'period' AND status NOT IN ('PENDING', 'RUNNING')
UNION ALL
SELECT 'keeps others out by another key', id, format('%s, key %L, slot %L', type, unique_key, unique_slot)
FROM dhara.tasks WHERE unique_slot IS DISTINCT FROM unique_key AND unique_slot IS NOT NULL

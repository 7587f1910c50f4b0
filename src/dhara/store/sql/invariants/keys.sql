-- I2: no two tasks of one idempotency key.
SELECT 'two tasks of one idempotency key' AS what, min(id::text)::uuid AS task_id,
       format('%s, key %L: %s', type, idempotency_key, string_agg(id::text, ' ' ORDER BY id)) AS detail
FROM dhara.tasks WHERE idempotency_key IS NOT NULL
GROUP BY type, idempotency_key HAVING count(*) > 1

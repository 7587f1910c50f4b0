-- The tasks that stand where an enqueue was skipped, in whose way they stand, and whether their payload is the same JSON.
-- `by`: id, idempotency_key or unique_key; `lapsed`: the unique key's period is over, so it stands no longer.
-- $1 uuid[] ids · $2 text[] types · $3 text[] idempotency keys (or NULL) · $4 text[] payloads · $5 text[] unique keys (or NULL)
SELECT k.id AS asked, t.by, t.payload::jsonb = k.payload::jsonb AS same_payload,
       t.by = 'unique_key' AND t.unique_scope = 'period' AND t.unique_until <= clock_timestamp() AS lapsed, t.*
FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[]) AS k (id, type, idempotency_key, payload, unique_key)
CROSS JOIN LATERAL (
    SELECT 'id' AS by, * FROM dhara.tasks WHERE id = k.id
    UNION ALL
    SELECT 'idempotency_key', * FROM dhara.tasks WHERE type = k.type AND idempotency_key = k.idempotency_key
    UNION ALL
    SELECT 'unique_key', * FROM dhara.tasks WHERE type = k.type AND unique_slot = k.unique_key
    LIMIT 1
) AS t

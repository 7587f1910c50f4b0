-- The tasks that stand where an enqueue was skipped, and whether their payload is the same JSON value.
-- $1 uuid[] ids · $2 text[] types · $3 text[] idempotency keys (or NULL) · $4 text[] payloads
SELECT k.id AS asked, t.payload::jsonb = k.payload::jsonb AS same_payload, t.*
FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[]) AS k (id, type, idempotency_key, payload)
CROSS JOIN LATERAL (
    SELECT * FROM dhara.tasks WHERE type = k.type AND idempotency_key = k.idempotency_key
    UNION ALL
    SELECT * FROM dhara.tasks WHERE id = k.id
    LIMIT 1
) AS t

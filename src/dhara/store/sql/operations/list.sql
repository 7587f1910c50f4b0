-- Bulk operations, newest first.
-- $1 integer most · $2 text only those that are limited to these patterns of queues (JSON), or NULL for all
SELECT * FROM dhara.operations WHERE $2::text IS NULL OR (filter->'queues')::jsonb = $2::text::jsonb ORDER BY id DESC LIMIT $1

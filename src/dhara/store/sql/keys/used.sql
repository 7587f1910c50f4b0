-- These keys have been used; written at most once a minute each.
-- $1 text[] ids
UPDATE dhara.api_keys SET last_used_at = clock_timestamp()
WHERE id = ANY ($1) AND COALESCE(last_used_at < clock_timestamp() - interval '1 minute', true)

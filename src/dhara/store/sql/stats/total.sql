-- How many tasks there are by the flows: of these states, of this queue. What it costs does not depend on their number.
-- $1 text[] states, or NULL for all · $2 text queue, or NULL for all
SELECT (COALESCE(sum(n) FILTER (WHERE to_state IS NOT NULL AND ($1::text[] IS NULL OR to_state = ANY ($1::text[]))), 0)
      - COALESCE(sum(n) FILTER (WHERE from_state IS NOT NULL AND ($1::text[] IS NULL OR from_state = ANY ($1::text[]))), 0))::bigint
FROM dhara.counters WHERE $2::text IS NULL OR queue = $2

-- The next ready tasks of one lane, whatever their types: how many of them a worker could claim, and where they end.
-- $1 text queue · $2 smallint priority · $3 timestamptz run_at and $4 uuid id of the mark they lie above
-- $5 text[] types that the worker knows · $6 integer most tasks to look at
WITH slice AS MATERIALIZED (
    SELECT run_at, id, type = ANY ($5::text[]) AND (expires_at IS NULL OR expires_at > statement_timestamp()) AS known
    FROM dhara.tasks
    WHERE status = 'PENDING' AND queue = $1 AND priority = $2 AND (run_at, id) > ($3, $4) AND run_at <= statement_timestamp()
    ORDER BY run_at, id
    LIMIT $6
)
SELECT count(*) OVER () AS looked, count(*) FILTER (WHERE known) OVER () AS known, run_at, id
FROM slice
ORDER BY run_at DESC, id DESC
LIMIT 1

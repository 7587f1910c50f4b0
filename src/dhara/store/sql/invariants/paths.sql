-- I4: each task's log is a path of allowed moves that begins at PENDING and ends at the row (or, pruned, at nothing).
-- $1 text[] states from · $2 text[] events · $3 text[] states to: the moves · $4 text[] final states
WITH moves AS (
    SELECT * FROM unnest($1::text[], $2::text[], $3::text[]) AS m (from_state, event, to_state)
), steps AS (
    -- Of a task that is gone, the beginning of its history may be gone too.
    SELECT l.task_id, l.seq, l.event, l.from_state, l.to_state,
           COALESCE(lag(l.to_state) OVER task,
                    CASE WHEN row_number() OVER task = 1 THEN CASE WHEN t.id IS NULL THEN l.from_state ELSE 'PENDING' END END
           ) AS before,
           lead(l.seq) OVER task IS NULL AS last, t.status
    FROM dhara.task_logs AS l LEFT JOIN dhara.tasks AS t ON t.id = l.task_id
    WHERE l.from_state IS NOT NULL
    WINDOW task AS (PARTITION BY l.task_id ORDER BY l.seq)
)
SELECT CASE WHEN from_state IS DISTINCT FROM before THEN 'broken path'
            WHEN last AND to_state IS DISTINCT FROM status THEN 'log and row differ'
            ELSE 'illegal move' END AS what,
       task_id, format('%s %s -> %s by %s, after %s; the row is %s', seq, from_state, to_state, event, before, status) AS detail
FROM steps AS s
WHERE from_state IS DISTINCT FROM before
   OR (last AND to_state IS DISTINCT FROM status)
   OR NOT (EXISTS (SELECT FROM moves AS m
                   WHERE m.event = s.event AND m.from_state = s.from_state AND m.to_state = s.to_state)
           OR (event = 'PRUNED' AND from_state = ANY ($4::text[]) AND to_state IS NULL))
UNION ALL
SELECT 'changed without a log', t.id, format('the row is %s', t.status)
FROM dhara.tasks AS t
WHERE t.status <> 'PENDING' AND NOT EXISTS (SELECT FROM dhara.task_logs AS l WHERE l.task_id = t.id AND l.from_state IS NOT NULL)

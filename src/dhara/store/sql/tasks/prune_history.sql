-- History past its own retention leaves, once its task is gone: of the $4 rows above ($1, $2) that are looked at, in the order
-- of task ids. Answers how many went, how many were looked at, and the last of these.
-- $1 uuid task · $2 bigint seq · $3 float8 seconds that history is kept · $4 integer most rows to look at
WITH seen AS MATERIALIZED (
    SELECT ctid, task_id, seq, at FROM dhara.task_history WHERE (task_id, seq) > ($1, $2) ORDER BY task_id, seq LIMIT $4
), gone AS (
    DELETE FROM dhara.task_history WHERE ctid = ANY (ARRAY(
        SELECT s.ctid FROM seen AS s
        WHERE s.at < clock_timestamp() - $3 * interval '1 second'
          AND NOT EXISTS (SELECT FROM dhara.tasks AS t WHERE t.id = s.task_id)))
    RETURNING 1
)
SELECT (SELECT count(*) FROM gone) AS gone, (SELECT count(*) FROM seen) AS looked, s.task_id, s.seq
FROM (VALUES (1)) AS one LEFT JOIN (SELECT task_id, seq FROM seen ORDER BY task_id DESC, seq DESC LIMIT 1) AS s ON true

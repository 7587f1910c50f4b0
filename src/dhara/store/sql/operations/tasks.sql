-- Some of the tasks that a bulk operation has changed, as they are now; those that it deleted are gone. Looks at the history
-- of the operation's first hour only, of which the index by time finds the place.
-- $1 text reason that it has left in histories · $2 timestamptz its begin · $3 timestamptz its end, or NULL · $4 integer most
WITH found AS MATERIALIZED (
    SELECT task_id FROM dhara.task_history
    WHERE at >= $2::timestamptz AND at <= LEAST($3::timestamptz, $2::timestamptz + interval '1 hour') AND reason = $1
      AND event IN ('REVIVED', 'CANCELED', 'CANCEL_REQUESTED') LIMIT $4
)
SELECT t.* FROM (SELECT DISTINCT task_id FROM found) AS f JOIN dhara.tasks AS t ON t.id = f.task_id ORDER BY t.id DESC

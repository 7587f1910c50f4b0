-- Final tasks past retention leave, in the order of their ids: of the $4 tasks above $1 that are looked at. Answers those that
-- went, how many were looked at, and the last of these, where the next step goes on.
-- $1 uuid after this id · $2 float8 seconds that COMPLETED and CANCELED tasks are kept · $3 float8 seconds for DEAD
-- $4 integer most tasks to look at
WITH seen AS MATERIALIZED (
    SELECT id, status, queue, completed_at, retention FROM dhara.tasks WHERE id > $1 ORDER BY id LIMIT $4
), due AS (
    SELECT s.id, s.status FROM seen AS s LEFT JOIN dhara.queues AS q ON q.name = s.queue
    WHERE s.status IN ('COMPLETED', 'CANCELED', 'DEAD')
      -- Its own retention, its queue's, the fleet's: the first that is said.
      AND s.completed_at < clock_timestamp() - interval '1 second' * COALESCE(
              s.retention, q.retention, CASE WHEN s.status = 'DEAD' THEN $3::float8 ELSE $2::float8 END)
), found AS (
    SELECT t.id FROM dhara.tasks AS t JOIN due ON due.id = t.id
    WHERE t.status = due.status
      -- A unique key that still keeps others out keeps its task, too.
      AND (t.unique_slot IS NULL OR t.unique_until <= clock_timestamp())
    FOR UPDATE OF t SKIP LOCKED
), gone AS (
    DELETE FROM dhara.tasks AS t USING found WHERE t.id = found.id
    RETURNING t.id, t.queue, t.status, t.generation, t.attempts
), logged AS (
    INSERT INTO dhara.task_history (task_id, generation, attempt, event, reason)
    SELECT id, generation, attempts, 'PRUNED', status FROM gone
), counted AS (
    INSERT INTO dhara.counters (n, queue, event, from_state, to_state)
    SELECT count(*), queue, 'PRUNED', status, NULL FROM gone GROUP BY queue, status
)
SELECT ARRAY(SELECT id FROM gone ORDER BY id) AS gone, (SELECT count(*) FROM seen) AS looked,
       (SELECT id FROM seen ORDER BY id DESC LIMIT 1) AS last

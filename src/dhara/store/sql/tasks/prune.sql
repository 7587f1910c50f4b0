-- Final tasks past retention leave, in the order of their ids, from $1 upwards; answers how far it came.
-- $1 uuid after this id · $2 float8 seconds that COMPLETED and CANCELED tasks are kept · $3 float8 seconds for DEAD
-- $4 integer most tasks
WITH found AS (
    SELECT t.id FROM dhara.tasks AS t
    WHERE t.id > $1 AND t.status IN ('COMPLETED', 'CANCELED', 'DEAD')
      -- Its own retention, its queue's, the fleet's: the first that is said.
      AND t.completed_at < clock_timestamp() - interval '1 second' * COALESCE(
              t.retention, (SELECT q.retention FROM dhara.queues AS q WHERE q.name = t.queue),
              CASE WHEN t.status = 'DEAD' THEN $3::float8 ELSE $2::float8 END)
      -- A unique key that still keeps others out keeps its task, too.
      AND (t.unique_slot IS NULL OR t.unique_until <= clock_timestamp())
    ORDER BY t.id LIMIT $4
    FOR UPDATE SKIP LOCKED
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
SELECT id FROM gone ORDER BY id

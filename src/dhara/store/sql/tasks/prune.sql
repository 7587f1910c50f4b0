-- Final tasks past retention leave, in the order of their ids, from $1 upwards; answers how far it came.
-- $1 uuid after this id · $2 float8 seconds that COMPLETED and CANCELED tasks are kept · $3 float8 seconds for DEAD
-- $4 integer most tasks
WITH found AS (
    SELECT id FROM dhara.tasks
    WHERE id > $1
      AND ((status IN ('COMPLETED', 'CANCELED') AND completed_at < clock_timestamp() - $2 * interval '1 second')
           OR (status = 'DEAD' AND completed_at < clock_timestamp() - $3 * interval '1 second'))
    ORDER BY id LIMIT $4
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

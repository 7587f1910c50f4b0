-- Delete DEAD tasks by an operator's wish; their history says so.
-- $1 uuid[] ids
WITH found AS (
    SELECT id FROM dhara.tasks WHERE id = ANY ($1::uuid[]) AND status = 'DEAD' ORDER BY id FOR UPDATE
), gone AS (
    DELETE FROM dhara.tasks AS t USING found WHERE t.id = found.id
    RETURNING t.id, t.queue, t.generation, t.attempts
), logged AS (
    INSERT INTO dhara.task_history (task_id, generation, attempt, event, reason)
    SELECT id, generation, attempts, 'PRUNED', 'DEAD' FROM gone
), counted AS (
    INSERT INTO dhara.counters (n, queue, event, from_state, to_state)
    SELECT count(*), queue, 'PRUNED', 'DEAD', NULL FROM gone GROUP BY queue
)
SELECT id, queue FROM gone

-- History past its own retention leaves, once its task is gone.
-- $1 float8 seconds that history is kept · $2 integer most rows
DELETE FROM dhara.task_history WHERE ctid = ANY (ARRAY(
    SELECT h.ctid FROM dhara.task_history AS h
    WHERE h.at < clock_timestamp() - $1 * interval '1 second'
      AND NOT EXISTS (SELECT FROM dhara.tasks AS t WHERE t.id = h.task_id)
    LIMIT $2))

-- How long a queue's oldest ready task may wait before somebody should look.
-- $1 text name · $2 float8 seconds, or NULL for the general setting · $3 text by whom
WITH found AS (
    SELECT wait_objective FROM dhara.queues WHERE name = $1 FOR UPDATE
), changed AS (
    -- Only once `found` has its lock, so that what was before is what is changed.
    INSERT INTO dhara.queues AS q (name, wait_objective) SELECT $1, $2 WHERE (SELECT count(*) FROM found) >= 0
    ON CONFLICT (name) DO UPDATE SET wait_objective = EXCLUDED.wait_objective, updated_at = clock_timestamp()
    RETURNING name
)
INSERT INTO dhara.audit_log (actor, action, target, before, after)
SELECT $3, 'queue.objective', name, json_build_object('wait_objective', (SELECT wait_objective FROM found)),
       json_build_object('wait_objective', $2::float8)
FROM changed

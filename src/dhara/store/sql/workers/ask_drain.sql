-- An operator wants a live worker to drain; asking again changes nothing. Answers the state in which it was found.
-- $1 uuid worker · $2 text by whom
WITH found AS (
    SELECT id, state FROM dhara.workers WHERE id = $1
), asked AS (
    INSERT INTO dhara.worker_drains (worker, requested_by)
    SELECT id, $2 FROM found WHERE state = 'live'
    ON CONFLICT (worker) DO NOTHING
    RETURNING worker
), audited AS (
    INSERT INTO dhara.audit_log (actor, action, target, before, after)
    SELECT $2, 'worker.drain', worker::text, json_build_object('state', 'live'), json_build_object('state', 'draining')
    FROM asked
)
SELECT state FROM found

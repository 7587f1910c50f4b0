-- A step that could not be taken: the next try is due later. Nothing happens if the operation has ended, or somebody else is
-- at it.
-- $1 uuid id · $2 float8 seconds until the next try
UPDATE dhara.operations SET due_at = clock_timestamp() + $2 * interval '1 second'
WHERE id = (SELECT id FROM dhara.operations WHERE id = $1 AND state = 'running' FOR UPDATE SKIP LOCKED)

-- Take one running operation's row for a step; no row: it has ended, or somebody else is at it.
-- $1 uuid id
SELECT * FROM dhara.operations
WHERE id = $1 AND state = 'running' AND due_at <= clock_timestamp() FOR UPDATE SKIP LOCKED

-- Running operations whose next step is due, the longest waiting first.
-- $1 integer most
SELECT id FROM dhara.operations WHERE state = 'running' AND due_at <= clock_timestamp() ORDER BY due_at LIMIT $1

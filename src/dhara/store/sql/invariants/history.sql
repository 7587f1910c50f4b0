-- Every change of these tasks, in order: what is shown beside a violation.
-- $1 uuid[] tasks
SELECT task_id, seq, generation, attempt, lease, event, from_state, to_state, worker_id, at, reason
FROM dhara.task_logs WHERE task_id = ANY ($1::uuid[]) ORDER BY task_id, seq

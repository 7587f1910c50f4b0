-- Put a fire on record, whatever became of it. No row: it was on record already, and nothing is to be done.
-- $1 text schedule · $2 timestamptz fire time (NULL: now) · $3 uuid task, or NULL · $4 text outcome
INSERT INTO dhara.schedule_fires (schedule, fire_at, task_id, outcome)
VALUES ($1, COALESCE($2, clock_timestamp()), $3, $4)
ON CONFLICT (schedule, fire_at) DO NOTHING RETURNING fire_at

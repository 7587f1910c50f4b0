-- A schedule has been fired up to $2; its next fire time is $4.
-- $1 text name · $2 timestamptz last fire (NULL: as it was) · $3 uuid the task that it enqueued last (NULL: as it was)
-- $4 timestamptz next fire
UPDATE dhara.schedules
SET last_at = COALESCE($2, last_at), last_task = COALESCE($3, last_task), next_at = $4 WHERE name = $1

-- Take a schedule's row to fire it. No row: it has been fired for that time, paused or changed, or somebody else is at it.
-- $1 text name · $2 timestamptz the fire time that was seen to be due
SELECT s.*, clock_timestamp() AS now FROM dhara.schedules AS s
WHERE s.name = $1 AND s.next_at = $2 AND s.next_at <= clock_timestamp() AND s.paused_at IS NULL
FOR UPDATE SKIP LOCKED

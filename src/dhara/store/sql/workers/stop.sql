-- A worker has ended, in order ('stopped') or not ('lost').
-- $1 uuid id · $2 text state
UPDATE dhara.workers SET state = $2, stopped_at = clock_timestamp(), running = 0 WHERE id = $1

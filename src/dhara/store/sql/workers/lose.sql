-- A reaper calls a worker lost, unless it has beaten since.
-- $1 uuid id · $2 bigint beat_seq as witnessed
UPDATE dhara.workers SET state = 'lost', stopped_at = clock_timestamp(), running = 0
WHERE id = $1 AND beat_seq = $2 AND state IN ('live', 'draining')

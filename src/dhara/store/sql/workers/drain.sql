-- A worker says that it claims nothing more.
-- $1 uuid id
UPDATE dhara.workers SET state = 'draining' WHERE id = $1 AND state = 'live'

-- 0009: how long a queue's ready tasks may wait until somebody should look, where that differs from the general setting.
-- A column without a default: nothing is rewritten, and a process of the version before does not notice.

ALTER TABLE dhara.queues ADD COLUMN wait_objective double precision;
COMMENT ON COLUMN dhara.queues.wait_objective IS 'Seconds that its oldest ready task should not wait longer than; NULL: as the general setting says.';

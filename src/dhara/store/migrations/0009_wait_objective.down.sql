ALTER TABLE dhara.queues DROP COLUMN wait_objective;

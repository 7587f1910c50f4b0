-- Takes away all that 0001 made, with every task in it.
DROP VIEW dhara.attempts;
DROP VIEW dhara.task_logs;
DROP TABLE dhara.leaders;
DROP TABLE dhara.histograms;
DROP TABLE dhara.counters;
DROP TABLE dhara.queues;
DROP TABLE dhara.workers;
DROP TABLE dhara.task_history;
DROP TABLE dhara.tasks;
DROP SEQUENCE dhara.task_history_seq;
DROP FUNCTION dhara.refuse_truncate();
DROP FUNCTION dhara.refuse_move();

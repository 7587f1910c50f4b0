DROP TABLE dhara.rates;
DROP TABLE dhara.operations;
DROP TABLE dhara.audit_log;
DROP FUNCTION dhara.refuse_change();
DROP TABLE dhara.failure_groups;
DROP INDEX dhara.tasks_failures;

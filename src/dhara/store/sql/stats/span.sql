-- Seconds from the first claim to the last change, over all history; for schemas that hold one run of a benchmark.
SELECT EXTRACT(EPOCH FROM max(at) - min(at))::float8 FROM dhara.task_logs

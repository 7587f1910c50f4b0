-- PENDING tasks that are ready and delayed, counted up to $1 each, and the age of the oldest ready one.
-- $1 integer cap
SELECT (SELECT count(*) FROM (SELECT FROM dhara.tasks WHERE status = 'PENDING' AND run_at <= statement_timestamp() LIMIT $1) AS t) AS ready,
       (SELECT count(*) FROM (SELECT FROM dhara.tasks WHERE status = 'PENDING' AND run_at > statement_timestamp() LIMIT $1) AS t) AS delayed

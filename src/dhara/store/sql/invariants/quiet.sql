-- I3: after quiet time nothing is RUNNING, and nothing is due and PENDING in a queue that is not paused.
SELECT CASE status WHEN 'RUNNING' THEN 'still RUNNING' ELSE 'due, and still PENDING' END AS what, id AS task_id,
       format('%s in %s, run_at %s, held by %s', type, queue, run_at, locked_by) AS detail
FROM dhara.tasks AS t
WHERE status = 'RUNNING'
   OR (status = 'PENDING' AND run_at <= clock_timestamp()
       AND NOT EXISTS (SELECT FROM dhara.queues AS q WHERE q.name = t.queue AND q.paused_at IS NOT NULL))

-- Whether an operator wants this worker to drain.
-- $1 uuid worker
SELECT EXISTS (SELECT FROM dhara.worker_drains WHERE worker = $1)

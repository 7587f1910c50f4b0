DROP TABLE dhara.worker_drains;

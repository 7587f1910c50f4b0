-- 0007: workers that an operator wants to drain. Of its own, beside the workers' rows: who asks need not be able to write these.

CREATE TABLE dhara.worker_drains (
    worker       uuid        PRIMARY KEY REFERENCES dhara.workers (id) ON DELETE CASCADE,
    requested_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    requested_by text        NOT NULL
);
COMMENT ON TABLE dhara.worker_drains IS 'Workers told to drain; each hears it with its next heartbeat, and leaves when what it runs has ended.';

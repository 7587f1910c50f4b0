-- 0001: the spine. Objects are written `dhara.x`; the migrator replaces that prefix by the configured schema.
-- What no row lacks comes first, and of it what never changes: PostgreSQL walks a row from the front to find a column, and an
-- update on the same page logs only what lies between the first and the last change.

CREATE SEQUENCE dhara.task_history_seq;

CREATE TABLE dhara.tasks (
    id                  uuid        PRIMARY KEY,
    run_at              timestamptz NOT NULL,
    created_at          timestamptz NOT NULL DEFAULT clock_timestamp(),
    generation          integer     NOT NULL DEFAULT 1,
    priority            smallint    NOT NULL DEFAULT 0,
    max_retries         smallint    NOT NULL DEFAULT 5,
    type                text        NOT NULL,
    queue               text        NOT NULL DEFAULT 'default',
    payload             json        NOT NULL DEFAULT '{}',
    updated_at          timestamptz NOT NULL DEFAULT clock_timestamp(),
    attempts            integer     NOT NULL DEFAULT 0,
    failures            smallint    NOT NULL DEFAULT 0,
    crashes             smallint    NOT NULL DEFAULT 0,
    snoozes             smallint    NOT NULL DEFAULT 0,
    status              text        NOT NULL DEFAULT 'PENDING',
    lease               uuid,
    locked_by           uuid,
    claim_seq           bigint,
    started_at          timestamptz,
    completed_at        timestamptz,
    cancel_requested_at timestamptz,
    expires_at          timestamptz,
    unique_until        timestamptz,
    timeout             double precision,
    retention           double precision,
    idempotency_key     text,
    unique_key          text,
    unique_slot         text,
    unique_scope        text,
    concurrency_key     text,
    traceparent         text,
    reason              text,
    fingerprint         text,
    last_error          text,
    tags                text[],
    progress            json,
    logs                json,
    result              json
) WITH (
    fillfactor = 80,
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_vacuum_threshold = 1000,
    autovacuum_analyze_scale_factor = 0.05,
    autovacuum_analyze_threshold = 1000,
    autovacuum_vacuum_insert_scale_factor = 0.05,
    autovacuum_vacuum_cost_delay = 0
);

COMMENT ON TABLE dhara.tasks IS 'One row a task; updated in place along the moves of domain/lifecycle.py only.';
COMMENT ON COLUMN dhara.tasks.lease IS 'Random token of the attempt that holds or held the row; every write of the attempt is conditional on it.';
COMMENT ON COLUMN dhara.tasks.unique_slot IS 'unique_key while it keeps others out: while pending, while open, or until unique_until.';
COMMENT ON COLUMN dhara.tasks.logs IS 'Log lines of the running attempt; they move to its history row when it ends.';
COMMENT ON COLUMN dhara.tasks.retention IS 'Seconds that the task is kept once it is final; NULL: as its queue or the fleet says.';
COMMENT ON COLUMN dhara.tasks.attempts IS 'Executions started, over all generations; only ever grows.';
COMMENT ON COLUMN dhara.tasks.failures IS 'Failed executions of this generation, the budget against max_retries.';
COMMENT ON COLUMN dhara.tasks.crashes IS 'Executions of this generation that ended by a crash or a lost lease; the poison counter.';

-- A claim walks one lane of this index: one queue, one priority, in order of run_at.
CREATE INDEX tasks_pending ON dhara.tasks (queue, priority DESC, run_at, id) WHERE status = 'PENDING';
-- What a worker holds: for its reaper, its keeper and its own comparison.
CREATE INDEX tasks_running ON dhara.tasks (locked_by) WHERE status = 'RUNNING';
CREATE INDEX tasks_dead ON dhara.tasks (id) WHERE status = 'DEAD';
CREATE INDEX tasks_expiring ON dhara.tasks (expires_at) WHERE status = 'PENDING' AND expires_at IS NOT NULL;
CREATE UNIQUE INDEX tasks_unique ON dhara.tasks (type, unique_slot) WHERE unique_slot IS NOT NULL;
CREATE UNIQUE INDEX tasks_idempotency ON dhara.tasks (type, idempotency_key) WHERE idempotency_key IS NOT NULL;

-- One row for each end of an attempt (holding both moves: the claim and what ended it) and for each other change.
-- The views task_logs and attempts show it as changes and as attempts.
CREATE TABLE dhara.task_history (
    seq        bigint      NOT NULL DEFAULT nextval('dhara.task_history_seq'),
    task_id    uuid        NOT NULL,
    lease      uuid,
    worker_id  uuid,
    claim_seq  bigint,
    claimed_at timestamptz,
    at         timestamptz NOT NULL DEFAULT clock_timestamp(),
    generation integer     NOT NULL,
    attempt    integer     NOT NULL,
    event      text        NOT NULL,
    reason     text,
    error      json,
    logs       json,
    PRIMARY KEY (task_id, seq)
) WITH (
    autovacuum_vacuum_insert_scale_factor = 0.1,
    autovacuum_vacuum_cost_delay = 0
);
CREATE INDEX task_history_at ON dhara.task_history USING brin (at) WITH (pages_per_range = 32);

CREATE TABLE dhara.workers (
    id           uuid        PRIMARY KEY,
    started_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    beat_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    stopped_at   timestamptz,
    beat_seq     bigint      NOT NULL DEFAULT 0,
    pid          integer     NOT NULL,
    slots        integer     NOT NULL,
    running      integer     NOT NULL DEFAULT 0,
    state        text        NOT NULL DEFAULT 'live' CHECK (state IN ('live', 'draining', 'stopped', 'lost')),
    host         text        NOT NULL,
    version      text        NOT NULL,
    types        text[]      NOT NULL,
    queues       json        NOT NULL
) WITH (fillfactor = 50, autovacuum_vacuum_threshold = 100, autovacuum_vacuum_scale_factor = 0.1);

CREATE TABLE dhara.queues (
    name       text        PRIMARY KEY,
    paused_at  timestamptz,
    paused_by  text,
    retention  double precision,
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- Flows between states, one row a statement, folded by maintenance; sums give the counters and the counts by state.
CREATE TABLE dhara.counters (
    n          bigint NOT NULL,
    queue      text   NOT NULL,
    event      text   NOT NULL,
    from_state text,
    to_state   text
) WITH (autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_scale_factor = 0.1, autovacuum_vacuum_cost_delay = 0);

-- Histograms of wait and run time, added up by every worker with each of its beats' comparisons.
CREATE TABLE dhara.histograms (
    name    text             NOT NULL,
    queue   text             NOT NULL,
    type    text             NOT NULL,
    total   double precision NOT NULL,
    buckets bigint[]         NOT NULL,
    PRIMARY KEY (name, queue, type)
) WITH (fillfactor = 50);

-- Leadership for maintenance: a row with an end, not a session lock, so that poolers and lost connections do no harm.
CREATE TABLE dhara.leaders (
    role   text        PRIMARY KEY,
    holder uuid        NOT NULL,
    until  timestamptz NOT NULL
) WITH (fillfactor = 50);

CREATE VIEW dhara.task_logs AS
    SELECT claim_seq AS seq, task_id, generation, attempt, lease, 'CLAIMED'::text AS event,
           'PENDING'::text AS from_state, 'RUNNING'::text AS to_state, worker_id, claimed_at AS at, NULL::text AS reason
    FROM dhara.task_history WHERE claim_seq IS NOT NULL
    UNION ALL
    SELECT seq, task_id, generation, attempt, lease, event,
           CASE WHEN event IN ('SETTLE_REJECTED', 'CANCEL_REQUESTED', 'PROGRESS', 'REPLACED', 'RESCHEDULED') THEN NULL
                WHEN event = 'EXPIRED' THEN 'PENDING'
                WHEN event = 'REVIVED' THEN 'DEAD'
                WHEN event = 'PRUNED' THEN reason
                WHEN claim_seq IS NULL THEN 'PENDING'
                ELSE 'RUNNING' END,
           CASE WHEN event IN ('COMPLETED', 'CANCELED', 'DEAD') THEN event
                WHEN event = 'EXPIRED' THEN 'DEAD'
                WHEN event IN ('RETRIED', 'SNOOZED', 'RELEASED', 'REAPED', 'REVIVED') THEN 'PENDING'
                END,
           worker_id, at, reason
    FROM dhara.task_history
    UNION ALL
    SELECT claim_seq, id, generation, attempts, lease, 'CLAIMED', 'PENDING', 'RUNNING', locked_by, started_at, NULL
    FROM dhara.tasks WHERE status = 'RUNNING';
COMMENT ON VIEW dhara.task_logs IS 'Every change of state of every task, by seq; the task''s own row stands for ENQUEUED.';

CREATE VIEW dhara.attempts AS
    SELECT task_id, generation, attempt, worker_id, lease, claimed_at AS started_at, at AS ended_at,
           event AS outcome, reason, error, logs
    FROM dhara.task_history WHERE claim_seq IS NOT NULL
    UNION ALL
    SELECT id, generation, attempts, locked_by, lease, started_at, NULL, NULL, NULL, NULL, logs
    FROM dhara.tasks WHERE status = 'RUNNING';
COMMENT ON VIEW dhara.attempts IS 'One row an execution; outcome and ended_at are NULL while it runs.';

-- Illegal moves: the WHEN of each trigger is the illegal condition itself, so the function is called only to raise.
CREATE FUNCTION dhara.refuse_move() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RAISE EXCEPTION 'dhara: task % may not go from % to % this way', COALESCE(OLD.id, NEW.id),
        COALESCE(OLD.status, 'nothing'), COALESCE(NEW.status, 'nothing')
        USING ERRCODE = 'check_violation',
              HINT = 'The allowed moves are listed in docs/reference/states.md; use the operations of dhara.';
END $$;

CREATE TRIGGER tasks_refuse_insert AFTER INSERT ON dhara.tasks FOR EACH ROW
    WHEN (NEW.status <> 'PENDING' OR NEW.attempts <> 0 OR NEW.generation <> 1 OR NEW.lease IS NOT NULL
          OR NEW.priority NOT BETWEEN 0 AND 100 OR NEW.max_retries NOT BETWEEN 0 AND 20
          OR length(NEW.type) NOT BETWEEN 1 AND 100 OR length(NEW.queue) NOT BETWEEN 1 AND 100)
    EXECUTE FUNCTION dhara.refuse_move();

CREATE TRIGGER tasks_refuse_update AFTER UPDATE ON dhara.tasks FOR EACH ROW
    WHEN (CASE OLD.status
              WHEN 'PENDING' THEN CASE NEW.status
                  WHEN 'RUNNING' THEN NEW.lease IS NULL OR NEW.lease IS NOT DISTINCT FROM OLD.lease
                                      OR NEW.attempts <> OLD.attempts + 1
                  WHEN 'PENDING' THEN NEW.attempts <> OLD.attempts
                  ELSE NEW.status NOT IN ('CANCELED', 'DEAD') END
              WHEN 'RUNNING' THEN NEW.status NOT IN ('COMPLETED', 'RUNNING', 'PENDING', 'CANCELED', 'DEAD')
                  OR NEW.lease IS DISTINCT FROM OLD.lease OR NEW.attempts <> OLD.attempts
              WHEN 'DEAD' THEN CASE NEW.status
                  WHEN 'PENDING' THEN NEW.generation <> OLD.generation + 1
                  ELSE NEW.status <> 'DEAD' END OR NEW.attempts <> OLD.attempts
              ELSE NEW.status <> OLD.status OR NEW.attempts <> OLD.attempts END
          OR NEW.id <> OLD.id
          OR (NEW.generation <> OLD.generation AND (OLD.status <> 'DEAD' OR NEW.status <> 'PENDING')))
    EXECUTE FUNCTION dhara.refuse_move();

CREATE TRIGGER tasks_refuse_delete AFTER DELETE ON dhara.tasks FOR EACH ROW
    WHEN (OLD.status IN ('PENDING', 'RUNNING'))
    EXECUTE FUNCTION dhara.refuse_move();

CREATE FUNCTION dhara.refuse_truncate() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RAISE EXCEPTION 'dhara: % may not be truncated', TG_TABLE_NAME USING ERRCODE = 'check_violation',
        HINT = 'Final tasks leave by retention (dhara docs: how-to/keep-and-prune).';
END $$;
CREATE TRIGGER tasks_refuse_truncate BEFORE TRUNCATE ON dhara.tasks
    FOR EACH STATEMENT EXECUTE FUNCTION dhara.refuse_truncate();
CREATE TRIGGER task_history_refuse_truncate BEFORE TRUNCATE ON dhara.task_history
    FOR EACH STATEMENT EXECUTE FUNCTION dhara.refuse_truncate();

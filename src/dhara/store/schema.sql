-- What all migrations add up to. Made by scripts/make_schema.py; do not edit, and do not install from it:
-- `dhara migrate up` keeps the record of what is applied.

-- 0001_tasks ------------------------------------------------------------------------------------------------

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
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    wait_objective double precision
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

-- 0002_enqueue ----------------------------------------------------------------------------------------------

-- 0002: enqueue by SQL, for triggers, other languages and other drivers, inside the caller's own transaction.
-- The rules are those of domain/validate.py; a test compares them case by case.

-- UUIDv7: the time in milliseconds in front, random behind.
CREATE FUNCTION dhara.new_id() RETURNS uuid
    LANGUAGE sql VOLATILE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
    SELECT encode(
        set_byte(set_byte(
            substring(int8send((extract(epoch FROM clock_timestamp()) * 1000)::bigint) FROM 3) || substring(r FROM 7 FOR 10),
            6, (get_byte(r, 6) & 15) | 112),
            8, (get_byte(r, 8) & 63) | 128), 'hex')::uuid
    FROM (SELECT uuid_send(gen_random_uuid()) AS r) AS random
$$;

CREATE FUNCTION dhara.refuse_field(field text, problem text) RETURNS void
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RAISE EXCEPTION 'dhara: %: %', field, problem USING ERRCODE = 'invalid_parameter_value', COLUMN = field;
END $$;

-- What an enqueue does to the PENDING task of its unique key; no row if it is PENDING no longer.
CREATE FUNCTION dhara.replace_pending(
    id uuid, content boolean, payload json, queue text, priority integer, max_retries integer, run_at timestamptz
) RETURNS SETOF uuid
    LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
    WITH found AS (
        SELECT t.id, t.queue FROM dhara.tasks AS t
        WHERE t.id = replace_pending.id AND t.status = 'PENDING' AND t.unique_slot IS NOT NULL FOR UPDATE
    ), changed AS (
        UPDATE dhara.tasks AS t
        SET run_at = replace_pending.run_at, updated_at = clock_timestamp(),
            payload = CASE WHEN replace_pending.content THEN replace_pending.payload ELSE t.payload END,
            queue = CASE WHEN replace_pending.content THEN replace_pending.queue ELSE t.queue END,
            priority = CASE WHEN replace_pending.content THEN replace_pending.priority ELSE t.priority END,
            max_retries = CASE WHEN replace_pending.content THEN replace_pending.max_retries ELSE t.max_retries END
        FROM found WHERE t.id = found.id
        RETURNING t.id, t.queue, t.generation, t.attempts, found.queue AS old_queue
    ), logged AS (
        INSERT INTO dhara.task_history (task_id, generation, attempt, event)
        SELECT c.id, c.generation, c.attempts, CASE WHEN replace_pending.content THEN 'REPLACED' ELSE 'RESCHEDULED' END
        FROM changed AS c
    ), counted AS (
        INSERT INTO dhara.counters (n, queue, event, from_state, to_state)
        SELECT 1, c.old_queue, 'MOVED', 'PENDING', NULL FROM changed AS c WHERE c.queue <> c.old_queue
        UNION ALL
        SELECT 1, c.queue, 'MOVED', NULL, 'PENDING' FROM changed AS c WHERE c.queue <> c.old_queue
    )
    SELECT c.id FROM changed AS c
$$;

CREATE FUNCTION dhara.enqueue(
    type text,
    payload json DEFAULT '{}',
    queue text DEFAULT 'default',
    priority integer DEFAULT 0,
    max_retries integer DEFAULT 5,
    run_at timestamptz DEFAULT NULL,
    delay double precision DEFAULT NULL,
    idempotency_key text DEFAULT NULL,
    timeout double precision DEFAULT NULL,
    expires_at timestamptz DEFAULT NULL,
    tags text[] DEFAULT NULL,
    concurrency_key text DEFAULT NULL,
    traceparent text DEFAULT NULL,
    unique_key text DEFAULT NULL,
    unique_for text DEFAULT 'open',
    on_conflict text DEFAULT 'keep',
    retention double precision DEFAULT NULL,
    id uuid DEFAULT NULL,
    OUT task_id uuid,
    OUT created boolean,
    OUT status text
)
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    name_pattern CONSTANT text := '^[a-z0-9][a-z0-9._:-]{0,99}$';
    moment timestamptz := clock_timestamp();
    timed boolean := enqueue.unique_for ~ '^\d';
    standing record;
BEGIN
    IF enqueue.type IS NULL OR enqueue.type !~ name_pattern THEN
        PERFORM dhara.refuse_field('type', '1 to 100 characters: a-z, 0-9, and . _ : - after the first');
    ELSIF enqueue.queue IS NULL OR enqueue.queue !~ name_pattern THEN
        PERFORM dhara.refuse_field('queue', '1 to 100 characters: a-z, 0-9, and . _ : - after the first');
    ELSIF enqueue.payload IS NULL OR octet_length(enqueue.payload::text) > 262144 THEN
        PERFORM dhara.refuse_field('payload', 'JSON of at most 256 KiB');
    ELSIF enqueue.priority IS NULL OR enqueue.priority NOT BETWEEN 0 AND 100 THEN
        PERFORM dhara.refuse_field('priority', 'an integer from 0 to 100');
    ELSIF enqueue.max_retries IS NULL OR enqueue.max_retries NOT BETWEEN 0 AND 20 THEN
        PERFORM dhara.refuse_field('max_retries', 'an integer from 0 to 20');
    ELSIF enqueue.run_at IS NOT NULL AND enqueue.delay IS NOT NULL THEN
        PERFORM dhara.refuse_field('delay', 'give run_at or delay, not both');
    ELSIF enqueue.run_at < moment - interval '5 minutes' THEN
        PERFORM dhara.refuse_field('run_at', 'is more than 5 minutes in the past');
    ELSIF enqueue.run_at > moment + interval '365 days' THEN
        PERFORM dhara.refuse_field('run_at', 'is more than 365 days ahead');
    ELSIF enqueue.delay NOT BETWEEN 0 AND 365 * 86400 THEN
        PERFORM dhara.refuse_field('delay', 'seconds, a number from 0 to 31536000');
    ELSIF length(enqueue.idempotency_key) NOT BETWEEN 1 AND 255 OR enqueue.idempotency_key ~ '[\x01-\x1f\x7f]' THEN
        PERFORM dhara.refuse_field('idempotency_key', 'text of 1 to 255 characters, no control characters');
    ELSIF enqueue.timeout NOT BETWEEN 0.001 AND 7 * 86400 THEN
        PERFORM dhara.refuse_field('timeout', 'seconds, a number from 0.001 to 604800');
    ELSIF enqueue.expires_at <= moment THEN
        PERFORM dhara.refuse_field('expires_at', 'is in the past');
    ELSIF enqueue.expires_at >= timestamptz '9999-12-31 00:00:00+00' THEN
        -- Later times, and infinity, are none that every client can read back.
        PERFORM dhara.refuse_field('expires_at', 'a time before the year 10000');
    ELSIF cardinality(enqueue.tags) > 32
          OR EXISTS (SELECT FROM unnest(enqueue.tags) AS t (tag)
                     WHERE tag IS NULL OR length(tag) NOT BETWEEN 1 AND 100 OR tag ~ '[\x01-\x1f\x7f]') THEN
        PERFORM dhara.refuse_field('tags', 'at most 32 texts of 1 to 100 characters');
    ELSIF length(enqueue.concurrency_key) NOT BETWEEN 1 AND 255 OR enqueue.concurrency_key ~ '[\x01-\x1f\x7f]' THEN
        PERFORM dhara.refuse_field('concurrency_key', 'text of 1 to 255 characters, no control characters');
    ELSIF enqueue.traceparent !~ '^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$' THEN
        PERFORM dhara.refuse_field('traceparent', 'a W3C traceparent');
    ELSIF length(enqueue.unique_key) NOT BETWEEN 1 AND 255 OR enqueue.unique_key ~ '[\x01-\x1f\x7f]' THEN
        PERFORM dhara.refuse_field('unique_key', 'text of 1 to 255 characters, no control characters');
    ELSIF enqueue.unique_for IS NULL OR enqueue.unique_for !~ '^(pending|open|\d{1,9}(\.\d{1,9})?)$'
          OR (timed AND enqueue.unique_for::float8 NOT BETWEEN 1 AND 365 * 86400) THEN
        PERFORM dhara.refuse_field('unique_for', '''pending'', ''open'', or seconds from 1 to 31536000');
    ELSIF enqueue.on_conflict IS NULL OR enqueue.on_conflict NOT IN ('keep', 'replace', 'reschedule') THEN
        PERFORM dhara.refuse_field('on_conflict', '''keep'', ''replace'' or ''reschedule''');
    ELSIF enqueue.retention NOT BETWEEN 0 AND 10 * 365 * 86400 THEN
        PERFORM dhara.refuse_field('retention', 'seconds, a number from 0 to 315360000');
    END IF;
    -- A payload that later reads could not show: jsonb refuses \u0000 and lone surrogates.
    PERFORM enqueue.payload::jsonb;
    -- Whatever is nested deeper than 64 levels is longer than 128 characters, which spares most payloads the search.
    IF octet_length(enqueue.payload::text) > 128 AND jsonb_path_exists(enqueue.payload::jsonb, 'strict $.**{65 to last}') THEN
        PERFORM dhara.refuse_field('payload', 'nested deeper than 64 levels');
    END IF;

    LOOP
        INSERT INTO dhara.tasks AS t (id, type, queue, payload, priority, max_retries, run_at, created_at, updated_at,
                                      idempotency_key, timeout, expires_at, tags, concurrency_key, traceparent, retention,
                                      unique_key, unique_slot, unique_scope, unique_until)
        VALUES (COALESCE(enqueue.id, dhara.new_id()), enqueue.type, enqueue.queue, enqueue.payload, enqueue.priority,
                enqueue.max_retries, GREATEST(enqueue.run_at, moment + enqueue.delay * interval '1 second', moment),
                moment, moment, enqueue.idempotency_key, enqueue.timeout, enqueue.expires_at, enqueue.tags,
                enqueue.concurrency_key, enqueue.traceparent, enqueue.retention, enqueue.unique_key, enqueue.unique_key,
                CASE WHEN enqueue.unique_key IS NOT NULL THEN CASE WHEN timed THEN 'period' ELSE enqueue.unique_for END END,
                CASE WHEN enqueue.unique_key IS NOT NULL AND timed
                     THEN moment + enqueue.unique_for::float8 * interval '1 second' END)
        ON CONFLICT DO NOTHING
        RETURNING t.id INTO task_id;
        IF FOUND THEN
            created := true;
            status := 'PENDING';
            INSERT INTO dhara.counters (n, queue, event, from_state, to_state)
            VALUES (1, enqueue.queue, 'ENQUEUED', NULL, 'PENDING');
            PERFORM pg_notify('dhara.wakeup', enqueue.queue);
            RETURN;
        END IF;
        SELECT t.id, t.status, t.payload::jsonb = enqueue.payload::jsonb AS same, t.unique_scope, t.unique_until,
               CASE WHEN t.id = enqueue.id THEN 'id'
                    WHEN t.idempotency_key = enqueue.idempotency_key THEN 'idempotency_key' ELSE 'unique_key' END AS way
        INTO standing
        FROM dhara.tasks AS t
        WHERE t.id = enqueue.id OR (t.type = enqueue.type AND t.idempotency_key = enqueue.idempotency_key)
           OR (t.type = enqueue.type AND t.unique_slot = enqueue.unique_key)
        ORDER BY 6 LIMIT 1;
        IF FOUND AND standing.way = 'unique_key' AND standing.unique_scope = 'period' AND standing.unique_until <= moment THEN
            UPDATE dhara.tasks AS t SET unique_slot = NULL WHERE t.id = standing.id;
            CONTINUE;
        END IF;
        IF FOUND AND standing.way = 'unique_key' AND standing.status = 'PENDING' AND enqueue.on_conflict <> 'keep' THEN
            PERFORM dhara.replace_pending(standing.id, enqueue.on_conflict = 'replace', enqueue.payload, enqueue.queue,
                enqueue.priority, enqueue.max_retries,
                GREATEST(enqueue.run_at, moment + enqueue.delay * interval '1 second', moment));
            -- It may have been claimed meanwhile; then it is looked at again.
            IF NOT FOUND THEN CONTINUE; END IF;
        END IF;
        IF standing.id IS NOT NULL THEN
            IF standing.way = 'idempotency_key' AND NOT standing.same THEN
                RAISE EXCEPTION 'dhara: idempotency key % belongs to task %, which has another payload',
                    quote_literal(enqueue.idempotency_key), standing.id
                    USING ERRCODE = 'unique_violation', HINT = 'Use another key for another task.';
            END IF;
            task_id := standing.id;
            created := standing.way = 'id';
            status := standing.status;
            RETURN;
        END IF;
        -- The row that stood in the way is gone (pruned, or its transaction rolled back): insert again.
    END LOOP;
END $$;
COMMENT ON FUNCTION dhara.enqueue IS 'Enqueue one task in the caller''s transaction: SELECT * FROM dhara.enqueue(type => ''email.send'', payload => ''{}'').';

-- Many at once, as one JSON list of objects with the parameters of dhara.enqueue; what enqueue_tx calls.
CREATE FUNCTION dhara.enqueue_all(tasks json, OUT ord bigint, OUT task_id uuid, OUT created boolean, OUT status text)
    RETURNS SETOF record
    LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
    SELECT t.ord, e.task_id, e.created, e.status
    FROM (
        SELECT given.ord, given.task->'payload' AS payload, fields.*  -- `->` keeps a payload of null apart from none
        FROM json_array_elements(enqueue_all.tasks) WITH ORDINALITY AS given (task, ord)
        CROSS JOIN LATERAL json_to_record(given.task) AS fields (
            id uuid, type text, queue text, priority integer, max_retries integer, run_at timestamptz,
            delay double precision, idempotency_key text, timeout double precision, expires_at timestamptz, tags text[],
            concurrency_key text, traceparent text, unique_key text, unique_for text, on_conflict text,
            retention double precision)
    ) AS t
    CROSS JOIN LATERAL dhara.enqueue(
        t.type, COALESCE(t.payload, '{}'), COALESCE(t.queue, 'default'), COALESCE(t.priority, 0),
        COALESCE(t.max_retries, 5), t.run_at, t.delay, t.idempotency_key, t.timeout, t.expires_at, t.tags,
        t.concurrency_key, t.traceparent, t.unique_key, COALESCE(t.unique_for, 'open'), COALESCE(t.on_conflict, 'keep'),
        t.retention, t.id) AS e
    ORDER BY t.ord
$$;

-- Complete a task in the transaction of its handler's own writes: what ctx.transaction() calls, through any driver.
-- One JSON object: id, lease, result, and logs and progress if there are any. False: the lease is lost, the caller must
-- roll back.
CREATE FUNCTION dhara.complete(outcome json) RETURNS boolean
    LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
    WITH settled AS (
        UPDATE dhara.tasks AS t
        SET status = 'COMPLETED', completed_at = clock_timestamp(), updated_at = clock_timestamp(),
            result = complete.outcome->'result', logs = NULL, reason = NULL, fingerprint = NULL,
            progress = COALESCE(complete.outcome->'progress', t.progress),
            unique_slot = CASE WHEN t.unique_scope = 'period' THEN t.unique_slot END
        WHERE t.id = (complete.outcome->>'id')::uuid AND t.status = 'RUNNING'
          AND t.lease = (complete.outcome->>'lease')::uuid
        RETURNING t.id, t.lease, t.locked_by, t.claim_seq, t.started_at, t.generation, t.attempts, t.queue
    ), logged AS (
        INSERT INTO dhara.task_history (task_id, lease, worker_id, claim_seq, claimed_at, generation, attempt, event, logs)
        SELECT id, lease, locked_by, claim_seq, started_at, generation, attempts, 'COMPLETED',
               CASE WHEN json_typeof(complete.outcome->'logs') = 'array' THEN complete.outcome->'logs' END
        FROM settled
    ), counted AS (
        INSERT INTO dhara.counters (n, queue, event, from_state, to_state)
        SELECT 1, queue, 'COMPLETED', 'RUNNING', 'COMPLETED' FROM settled
    )
    SELECT EXISTS (SELECT FROM settled)
$$;

-- 0003_operate ----------------------------------------------------------------------------------------------

-- 0003: the operator's side. Nothing here is written on the way of a task: figures are sampled by maintenance, the audit
-- log by operators' actions, and the one new index of `tasks` holds DEAD ones only.

-- Failure groups: how many of each fingerprint, first and last seen, newest first.
CREATE INDEX tasks_failures ON dhara.tasks (fingerprint, completed_at) WHERE status = 'DEAD';

CREATE TABLE dhara.failure_groups (
    fingerprint text        PRIMARY KEY,
    muted_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    muted_by    text        NOT NULL
);
COMMENT ON TABLE dhara.failure_groups IS 'Groups of DEAD tasks that an operator has muted: known, and to be left out of alarms.';

-- Who did what: one row an action, written in the action's own statement or transaction.
CREATE TABLE dhara.audit_log (
    seq    bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    actor  text        NOT NULL,
    action text        NOT NULL,
    target text        NOT NULL,
    before json,
    after  json
);
CREATE INDEX audit_log_target ON dhara.audit_log (target, seq);
COMMENT ON TABLE dhara.audit_log IS 'Every action of an operator; rows are only ever added.';
COMMENT ON COLUMN dhara.audit_log.before IS 'What the action changed, as it was; NULL: there was nothing.';

CREATE FUNCTION dhara.refuse_change() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RAISE EXCEPTION 'dhara: % is append-only', TG_TABLE_NAME USING ERRCODE = 'check_violation',
        HINT = 'What has been done stays on record.';
END $$;
CREATE TRIGGER audit_log_refuse_change BEFORE UPDATE OR DELETE OR TRUNCATE ON dhara.audit_log
    FOR EACH STATEMENT EXECUTE FUNCTION dhara.refuse_change();

-- Bulk operations: walked in batches, in the order of task ids, by whoever holds the row's lock; a death loses one batch.
CREATE TABLE dhara.operations (
    id                uuid        PRIMARY KEY,
    created_at        timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at        timestamptz NOT NULL DEFAULT clock_timestamp(),
    finished_at       timestamptz,
    due_at            timestamptz NOT NULL DEFAULT clock_timestamp(),
    after_id          uuid        NOT NULL DEFAULT '00000000-0000-0000-0000-000000000000',
    total             bigint      NOT NULL,
    done              bigint      NOT NULL DEFAULT 0,
    skipped           bigint      NOT NULL DEFAULT 0,
    total_is_estimate boolean     NOT NULL,
    kind              text        NOT NULL CHECK (kind IN ('retry', 'purge', 'cancel')),
    state             text        NOT NULL DEFAULT 'running' CHECK (state IN ('running', 'stopped', 'done', 'failed')),
    asked_by          text        NOT NULL,
    reason            text,
    wave              uuid[]      NOT NULL DEFAULT '{}',
    wave_at           timestamptz,
    filter            json        NOT NULL,
    canary            json
);
CREATE INDEX operations_running ON dhara.operations (due_at) WHERE state = 'running';
COMMENT ON TABLE dhara.operations IS 'Bulk operations: what was asked, by whom, and how far it has come.';
COMMENT ON COLUMN dhara.operations.after_id IS 'The last task that has been seen to; the next batch begins behind it.';
COMMENT ON COLUMN dhara.operations.wave IS 'The tasks that a canary retry has released last and watches.';

-- The totals of each queue (and of all: `*`) as maintenance found them first in each minute: differences are rates.
CREATE TABLE dhara.rates (
    minute    timestamptz NOT NULL,
    at        timestamptz NOT NULL,
    enqueued  bigint      NOT NULL,
    completed bigint      NOT NULL,
    failed    bigint      NOT NULL,
    dead      bigint      NOT NULL,
    depth     bigint      NOT NULL,
    queue     text        NOT NULL,
    PRIMARY KEY (queue, minute)
);
CREATE INDEX rates_minute ON dhara.rates USING brin (minute);
COMMENT ON TABLE dhara.rates IS 'One row a queue and minute, kept for a day: totals since the beginning, and the depth.';

-- 0004_schedules --------------------------------------------------------------------------------------------

-- 0004: schedules. Exactly one fire for each (schedule, fire time), whoever fires: the primary key of schedule_fires says so.

CREATE TABLE dhara.schedules (
    name          text             PRIMARY KEY,
    created_at    timestamptz      NOT NULL DEFAULT clock_timestamp(),
    updated_at    timestamptz      NOT NULL DEFAULT clock_timestamp(),
    anchor        timestamptz      NOT NULL DEFAULT clock_timestamp(),
    next_at       timestamptz,
    last_at       timestamptz,
    last_task     uuid,
    paused_at     timestamptz,
    paused_by     text,
    every         double precision,
    jitter        double precision NOT NULL DEFAULT 0,
    catch_up_most integer          NOT NULL DEFAULT 100,
    cron          text,
    timezone      text             NOT NULL DEFAULT 'UTC',
    missed        text             NOT NULL DEFAULT 'coalesce' CHECK (missed IN ('coalesce', 'skip', 'catch_up')),
    overlap       text             NOT NULL DEFAULT 'allow' CHECK (overlap IN ('allow', 'skip', 'cancel_previous')),
    source        text             NOT NULL CHECK (source IN ('code', 'operator')),
    type          text             NOT NULL,
    queue         text             NOT NULL DEFAULT 'default',
    priority      smallint         NOT NULL DEFAULT 0,
    max_retries   smallint         NOT NULL DEFAULT 5,
    timeout       double precision,
    payload       json             NOT NULL DEFAULT '{}',
    CHECK ((cron IS NULL) <> (every IS NULL))
);
CREATE INDEX schedules_due ON dhara.schedules (next_at) WHERE paused_at IS NULL;
COMMENT ON TABLE dhara.schedules IS 'What enqueues tasks by itself, and when next.';
COMMENT ON COLUMN dhara.schedules.next_at IS 'The next fire time, by the database''s clock; NULL: there is none.';
COMMENT ON COLUMN dhara.schedules.anchor IS 'Fire times of `every` are counted from here.';

CREATE TABLE dhara.schedule_fires (
    schedule text        NOT NULL,
    fire_at  timestamptz NOT NULL,
    fired_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    task_id  uuid,
    outcome  text        NOT NULL CHECK (outcome IN ('enqueued', 'overlap', 'missed', 'by_hand')),
    PRIMARY KEY (schedule, fire_at)
);
CREATE INDEX schedule_fires_fired_at ON dhara.schedule_fires USING brin (fired_at);
COMMENT ON TABLE dhara.schedule_fires IS 'Fire times that have been dealt with; task_id is NULL where the policy enqueued nothing.';

-- 0005_access -----------------------------------------------------------------------------------------------

-- 0005: API keys of the HTTP interface, how much a queue takes, and what the roles of `dhara migrate roles` need. Of a key only a hash is kept; rows are never
-- deleted, so that what a key did can still be told.

CREATE TABLE dhara.api_keys (
    id           text             PRIMARY KEY CHECK (id ~ '^[a-z0-9]{12}$'),
    name         text             NOT NULL CHECK (length(name) BETWEEN 1 AND 100),
    digest       bytea            NOT NULL CHECK (octet_length(digest) = 32),
    scopes       text[]           NOT NULL CHECK (cardinality(scopes) > 0),
    queues       text[]           NOT NULL DEFAULT '{}',
    rate         double precision CHECK (rate > 0),
    created_at   timestamptz      NOT NULL DEFAULT clock_timestamp(),
    created_by   text,
    changed_at   timestamptz      NOT NULL DEFAULT clock_timestamp(),
    expires_at   timestamptz,
    revoked_at   timestamptz,
    revoked_by   text,
    replaced_by  text             REFERENCES dhara.api_keys (id),
    last_used_at timestamptz
);
COMMENT ON TABLE dhara.api_keys IS 'Keys of the HTTP API; servers look here every second.';
COMMENT ON COLUMN dhara.api_keys.digest IS 'SHA-256 of the whole key; the key itself is kept nowhere.';
COMMENT ON COLUMN dhara.api_keys.queues IS 'Patterns of the queues that the key may see and fill, * for any characters; empty: all.';
COMMENT ON COLUMN dhara.api_keys.rate IS 'Requests a second at each server; NULL: as the settings say.';
COMMENT ON COLUMN dhara.api_keys.changed_at IS 'When anything but last_used_at last changed.';
COMMENT ON COLUMN dhara.api_keys.last_used_at IS 'About when it was last used; written at most once a minute.';
CREATE INDEX api_keys_changed ON dhara.api_keys (changed_at);

CREATE TABLE dhara.queue_limits (
    name       text        PRIMARY KEY,
    most       bigint      NOT NULL CHECK (most >= 0),
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE dhara.queue_limits IS 'How many PENDING tasks a queue takes over HTTP before it answers 429; goes before the setting.';

-- Functions are for those who are granted them, as tables are.
REVOKE ALL ON FUNCTION dhara.refuse_move, dhara.refuse_truncate, dhara.new_id, dhara.refuse_field, dhara.replace_pending,
    dhara.enqueue, dhara.enqueue_all, dhara.complete, dhara.refuse_change FROM PUBLIC;

-- Of `dhara migrate roles`: its trigger's WHEN is the illegal condition, as everywhere.
CREATE FUNCTION dhara.refuse_role() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RAISE EXCEPTION 'dhara: role % may not end the attempt of a task', current_user
        USING ERRCODE = 'insufficient_privilege', HINT = 'Only workers settle; see docs/how-to/database-roles.md.';
END $$;
REVOKE ALL ON FUNCTION dhara.refuse_role FROM PUBLIC;

-- 0006_shared_doors -----------------------------------------------------------------------------------------

-- 0006: limits of queues that hold for every way in, and sign-ins to the dashboard that every server knows.

-- Which queues are full is found out by whoever looks (servers and clients that enqueue, each second; the leader of
-- maintenance), so that an enqueue by SQL need not count.
CREATE TABLE dhara.full_queues (
    name     text        PRIMARY KEY,
    since    timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE dhara.full_queues IS 'The queues that held as many PENDING tasks as their limit allows when somebody last looked.';

CREATE TABLE dhara.sessions (
    digest     bytea       PRIMARY KEY CHECK (octet_length(digest) = 32),
    proof      bytea       NOT NULL CHECK (octet_length(proof) = 32),
    key_id     text        NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    seen_at    timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX sessions_seen_at ON dhara.sessions (seen_at);
COMMENT ON TABLE dhara.sessions IS 'Who is signed in to the dashboard; rows go when they are ended or too long idle.';
COMMENT ON COLUMN dhara.sessions.digest IS 'SHA-256 of the session''s name, which only its cookie has.';
COMMENT ON COLUMN dhara.sessions.proof IS 'HMAC-SHA-256 of the API key''s digest under the session''s name: which key it is, to nobody but the cookie''s holder.';
COMMENT ON COLUMN dhara.sessions.key_id IS 'The API key that it was begun with; empty: one of the settings.';
COMMENT ON COLUMN dhara.sessions.seen_at IS 'When it was last used, to about a minute.';

-- As in 0002, and queues may be full.
CREATE OR REPLACE FUNCTION dhara.enqueue(
    type text,
    payload json DEFAULT '{}',
    queue text DEFAULT 'default',
    priority integer DEFAULT 0,
    max_retries integer DEFAULT 5,
    run_at timestamptz DEFAULT NULL,
    delay double precision DEFAULT NULL,
    idempotency_key text DEFAULT NULL,
    timeout double precision DEFAULT NULL,
    expires_at timestamptz DEFAULT NULL,
    tags text[] DEFAULT NULL,
    concurrency_key text DEFAULT NULL,
    traceparent text DEFAULT NULL,
    unique_key text DEFAULT NULL,
    unique_for text DEFAULT 'open',
    on_conflict text DEFAULT 'keep',
    retention double precision DEFAULT NULL,
    id uuid DEFAULT NULL,
    OUT task_id uuid,
    OUT created boolean,
    OUT status text
)
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    name_pattern CONSTANT text := '^[a-z0-9][a-z0-9._:-]{0,99}$';
    moment timestamptz := clock_timestamp();
    timed boolean := enqueue.unique_for ~ '^\d';
    standing record;
BEGIN
    IF enqueue.type IS NULL OR enqueue.type !~ name_pattern THEN
        PERFORM dhara.refuse_field('type', '1 to 100 characters: a-z, 0-9, and . _ : - after the first');
    ELSIF enqueue.queue IS NULL OR enqueue.queue !~ name_pattern THEN
        PERFORM dhara.refuse_field('queue', '1 to 100 characters: a-z, 0-9, and . _ : - after the first');
    ELSIF enqueue.payload IS NULL OR octet_length(enqueue.payload::text) > 262144 THEN
        PERFORM dhara.refuse_field('payload', 'JSON of at most 256 KiB');
    ELSIF enqueue.priority IS NULL OR enqueue.priority NOT BETWEEN 0 AND 100 THEN
        PERFORM dhara.refuse_field('priority', 'an integer from 0 to 100');
    ELSIF enqueue.max_retries IS NULL OR enqueue.max_retries NOT BETWEEN 0 AND 20 THEN
        PERFORM dhara.refuse_field('max_retries', 'an integer from 0 to 20');
    ELSIF enqueue.run_at IS NOT NULL AND enqueue.delay IS NOT NULL THEN
        PERFORM dhara.refuse_field('delay', 'give run_at or delay, not both');
    ELSIF enqueue.run_at < moment - interval '5 minutes' THEN
        PERFORM dhara.refuse_field('run_at', 'is more than 5 minutes in the past');
    ELSIF enqueue.run_at > moment + interval '365 days' THEN
        PERFORM dhara.refuse_field('run_at', 'is more than 365 days ahead');
    ELSIF enqueue.delay NOT BETWEEN 0 AND 365 * 86400 THEN
        PERFORM dhara.refuse_field('delay', 'seconds, a number from 0 to 31536000');
    ELSIF length(enqueue.idempotency_key) NOT BETWEEN 1 AND 255 OR enqueue.idempotency_key ~ '[\x01-\x1f\x7f]' THEN
        PERFORM dhara.refuse_field('idempotency_key', 'text of 1 to 255 characters, no control characters');
    ELSIF enqueue.timeout NOT BETWEEN 0.001 AND 7 * 86400 THEN
        PERFORM dhara.refuse_field('timeout', 'seconds, a number from 0.001 to 604800');
    ELSIF enqueue.expires_at <= moment THEN
        PERFORM dhara.refuse_field('expires_at', 'is in the past');
    ELSIF enqueue.expires_at >= timestamptz '9999-12-31 00:00:00+00' THEN
        -- Later times, and infinity, are none that every client can read back.
        PERFORM dhara.refuse_field('expires_at', 'a time before the year 10000');
    ELSIF cardinality(enqueue.tags) > 32
          OR EXISTS (SELECT FROM unnest(enqueue.tags) AS t (tag)
                     WHERE tag IS NULL OR length(tag) NOT BETWEEN 1 AND 100 OR tag ~ '[\x01-\x1f\x7f]') THEN
        PERFORM dhara.refuse_field('tags', 'at most 32 texts of 1 to 100 characters');
    ELSIF length(enqueue.concurrency_key) NOT BETWEEN 1 AND 255 OR enqueue.concurrency_key ~ '[\x01-\x1f\x7f]' THEN
        PERFORM dhara.refuse_field('concurrency_key', 'text of 1 to 255 characters, no control characters');
    ELSIF enqueue.traceparent !~ '^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$' THEN
        PERFORM dhara.refuse_field('traceparent', 'a W3C traceparent');
    ELSIF length(enqueue.unique_key) NOT BETWEEN 1 AND 255 OR enqueue.unique_key ~ '[\x01-\x1f\x7f]' THEN
        PERFORM dhara.refuse_field('unique_key', 'text of 1 to 255 characters, no control characters');
    ELSIF enqueue.unique_for IS NULL OR enqueue.unique_for !~ '^(pending|open|\d{1,9}(\.\d{1,9})?)$'
          OR (timed AND enqueue.unique_for::float8 NOT BETWEEN 1 AND 365 * 86400) THEN
        PERFORM dhara.refuse_field('unique_for', '''pending'', ''open'', or seconds from 1 to 31536000');
    ELSIF enqueue.on_conflict IS NULL OR enqueue.on_conflict NOT IN ('keep', 'replace', 'reschedule') THEN
        PERFORM dhara.refuse_field('on_conflict', '''keep'', ''replace'' or ''reschedule''');
    ELSIF enqueue.retention NOT BETWEEN 0 AND 10 * 365 * 86400 THEN
        PERFORM dhara.refuse_field('retention', 'seconds, a number from 0 to 315360000');
    END IF;
    -- A payload that later reads could not show: jsonb refuses \u0000 and lone surrogates.
    PERFORM enqueue.payload::jsonb;
    -- Whatever is nested deeper than 64 levels is longer than 128 characters, which spares most payloads the search.
    IF octet_length(enqueue.payload::text) > 128 AND jsonb_path_exists(enqueue.payload::jsonb, 'strict $.**{65 to last}') THEN
        PERFORM dhara.refuse_field('payload', 'nested deeper than 64 levels');
    END IF;

    LOOP
        INSERT INTO dhara.tasks AS t (id, type, queue, payload, priority, max_retries, run_at, created_at, updated_at,
                                      idempotency_key, timeout, expires_at, tags, concurrency_key, traceparent, retention,
                                      unique_key, unique_slot, unique_scope, unique_until)
        VALUES (COALESCE(enqueue.id, dhara.new_id()), enqueue.type, enqueue.queue, enqueue.payload, enqueue.priority,
                enqueue.max_retries, GREATEST(enqueue.run_at, moment + enqueue.delay * interval '1 second', moment),
                moment, moment, enqueue.idempotency_key, enqueue.timeout, enqueue.expires_at, enqueue.tags,
                enqueue.concurrency_key, enqueue.traceparent, enqueue.retention, enqueue.unique_key, enqueue.unique_key,
                CASE WHEN enqueue.unique_key IS NOT NULL THEN CASE WHEN timed THEN 'period' ELSE enqueue.unique_for END END,
                CASE WHEN enqueue.unique_key IS NOT NULL AND timed
                     THEN moment + enqueue.unique_for::float8 * interval '1 second' END)
        ON CONFLICT DO NOTHING
        RETURNING t.id INTO task_id;
        IF FOUND THEN
            created := true;
            status := 'PENDING';
            -- Only what is new needs room: a repetition finds its task in a full queue, too.
            IF EXISTS (SELECT FROM dhara.full_queues AS f WHERE f.name = enqueue.queue) THEN
                RAISE EXCEPTION 'dhara: queue % is full', enqueue.queue USING ERRCODE = 'configuration_limit_exceeded',
                    HINT = 'Enqueue more slowly, or raise the limit: dhara queues limit.';
            END IF;
            INSERT INTO dhara.counters (n, queue, event, from_state, to_state)
            VALUES (1, enqueue.queue, 'ENQUEUED', NULL, 'PENDING');
            -- Where a session neither reads nor ends, the queue of notifications fills up, and then every COMMIT that
            -- notifies fails. A wake-up is a hint: workers look by themselves.
            IF pg_notification_queue_usage() < 0.5 THEN
                PERFORM pg_notify('dhara.wakeup', enqueue.queue);
            END IF;
            RETURN;
        END IF;
        SELECT t.id, t.status, t.payload::jsonb = enqueue.payload::jsonb AS same, t.unique_scope, t.unique_until,
               CASE WHEN t.id = enqueue.id THEN 'id'
                    WHEN t.idempotency_key = enqueue.idempotency_key THEN 'idempotency_key' ELSE 'unique_key' END AS way
        INTO standing
        FROM dhara.tasks AS t
        WHERE t.id = enqueue.id OR (t.type = enqueue.type AND t.idempotency_key = enqueue.idempotency_key)
           OR (t.type = enqueue.type AND t.unique_slot = enqueue.unique_key)
        ORDER BY 6 LIMIT 1;
        IF FOUND AND standing.way = 'unique_key' AND standing.unique_scope = 'period' AND standing.unique_until <= moment THEN
            UPDATE dhara.tasks AS t SET unique_slot = NULL WHERE t.id = standing.id;
            CONTINUE;
        END IF;
        IF FOUND AND standing.way = 'unique_key' AND standing.status = 'PENDING' AND enqueue.on_conflict <> 'keep' THEN
            PERFORM dhara.replace_pending(standing.id, enqueue.on_conflict = 'replace', enqueue.payload, enqueue.queue,
                enqueue.priority, enqueue.max_retries,
                GREATEST(enqueue.run_at, moment + enqueue.delay * interval '1 second', moment));
            -- It may have been claimed meanwhile; then it is looked at again.
            IF NOT FOUND THEN CONTINUE; END IF;
        END IF;
        IF standing.id IS NOT NULL THEN
            IF standing.way = 'idempotency_key' AND NOT standing.same THEN
                RAISE EXCEPTION 'dhara: idempotency key % belongs to task %, which has another payload',
                    quote_literal(enqueue.idempotency_key), standing.id
                    USING ERRCODE = 'unique_violation', HINT = 'Use another key for another task.';
            END IF;
            task_id := standing.id;
            created := standing.way = 'id';
            status := standing.status;
            RETURN;
        END IF;
        -- The row that stood in the way is gone (pruned, or its transaction rolled back): insert again.
    END LOOP;
END $$;

COMMENT ON TABLE dhara.api_keys IS 'Keys of the HTTP API; servers look here every few seconds.';

-- 0007_drain ------------------------------------------------------------------------------------------------

-- 0007: workers that an operator wants to drain. Of its own, beside the workers' rows: who asks need not be able to write these.

CREATE TABLE dhara.worker_drains (
    worker       uuid        PRIMARY KEY REFERENCES dhara.workers (id) ON DELETE CASCADE,
    requested_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    requested_by text        NOT NULL
);
COMMENT ON TABLE dhara.worker_drains IS 'Workers told to drain; each hears it with its next heartbeat, and leaves when what it runs has ended.';

-- 0008_fillfactor -------------------------------------------------------------------------------------------

-- 0008: more room in each page of tasks for the two new versions that a task's row gets: both mostly stay in its page, where the
-- log needs only what differs. 1,203 -> 1,028 bytes of WAL a drained task; the table at its largest 48 -> 40 MB (60,000 tasks).
-- Concerns pages written from now on; locks nobody out.

ALTER TABLE dhara.tasks SET (fillfactor = 60);

-- 0009_wait_objective ---------------------------------------------------------------------------------------

-- 0009: how long a queue's ready tasks may wait until somebody should look, where that differs from the general setting.
-- A column without a default: nothing is rewritten, and a process of the version before does not notice.

COMMENT ON COLUMN dhara.queues.wait_objective IS 'Seconds that its oldest ready task should not wait longer than; NULL: as the general setting says.';

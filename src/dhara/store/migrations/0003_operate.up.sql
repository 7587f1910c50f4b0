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

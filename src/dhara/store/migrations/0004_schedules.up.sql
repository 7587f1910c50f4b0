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

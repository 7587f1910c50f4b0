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

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
DROP TABLE dhara.sessions;
DROP TABLE dhara.full_queues;
COMMENT ON TABLE dhara.api_keys IS 'Keys of the HTTP API; servers look here every second.';

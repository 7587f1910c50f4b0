-- Change a schedule's definition; whether it is paused stays as it is, and so does its next fire, which may be overdue, where
-- the times of fires stay the same. No row: there is none of that name.
-- $1 text name · $2 text cron or NULL · $3 float8 every so many seconds, or NULL · $4 text zone · $5 float8 jitter in seconds
-- $6 text policy for missed fires · $7 text policy for overlaps · $8 integer most fires to catch up · $9 text type
-- $10 text queue · $11 smallint priority · $12 smallint max_retries · $13 float8 timeout · $14 text payload (JSON)
-- $15 timestamptz next fire, if the times change · $16 timestamptz anchor · $17 text source: code or operator · $18 text by whom
WITH found AS (
    SELECT * FROM dhara.schedules WHERE name = $1 FOR UPDATE
), changed AS (
    UPDATE dhara.schedules AS s
    SET cron = $2, every = $3, timezone = $4, jitter = $5, missed = $6, overlap = $7, catch_up_most = $8, type = $9, queue = $10,
        priority = $11, max_retries = $12, timeout = $13, payload = $14::text::json, anchor = $16, source = $17,
        updated_at = clock_timestamp(),
        next_at = CASE WHEN (s.cron, s.every, s.timezone) IS DISTINCT FROM ($2, $3, $4) THEN $15 ELSE s.next_at END
    FROM found WHERE s.name = found.name
    RETURNING s.*
), audited AS (
    INSERT INTO dhara.audit_log (actor, action, target, before, after)
    SELECT $18, 'schedule.update', changed.name, (to_jsonb(found) - 'payload')::json, (to_jsonb(changed) - 'payload')::json
    FROM changed JOIN found USING (name)
)
SELECT * FROM changed

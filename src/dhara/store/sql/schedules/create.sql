-- Make a schedule; no row if there is one of that name.
-- $1 text name · $2 text cron or NULL · $3 float8 every so many seconds, or NULL · $4 text zone · $5 float8 jitter in seconds
-- $6 text policy for missed fires · $7 text policy for overlaps · $8 integer most fires to catch up · $9 text type
-- $10 text queue · $11 smallint priority · $12 smallint max_retries · $13 float8 timeout · $14 text payload (JSON)
-- $15 timestamptz next fire · $16 timestamptz anchor · $17 text source: code or operator · $18 text by whom
WITH made AS (
    INSERT INTO dhara.schedules (name, cron, every, timezone, jitter, missed, overlap, catch_up_most, type, queue, priority,
                                 max_retries, timeout, payload, next_at, anchor, source)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14::text::json, $15, $16, $17)
    ON CONFLICT (name) DO NOTHING
    RETURNING *
), audited AS (
    INSERT INTO dhara.audit_log (actor, action, target, after)
    SELECT $18, 'schedule.create', made.name, (to_jsonb(made) - 'payload')::json FROM made
)
SELECT * FROM made

-- Begin a bulk operation; whoever drives operations next takes it up.
-- $1 uuid id · $2 text kind · $3 text filter (JSON) · $4 text by whom · $5 bigint total · $6 boolean total is an estimate
-- $7 text canary plan (JSON), or NULL
WITH made AS (
    INSERT INTO dhara.operations (id, kind, filter, asked_by, total, total_is_estimate, canary)
    VALUES ($1, $2, $3::text::json, $4, $5, $6, $7::text::json)
    RETURNING *
), audited AS (
    INSERT INTO dhara.audit_log (actor, action, target, after)
    SELECT $4, 'operation.start', id::text,
           json_build_object('kind', kind, 'filter', filter, 'total', total, 'canary', canary)
    FROM made
)
SELECT * FROM made

-- Actions, newest first, below $1; each filter may be NULL.
-- $1 bigint seq · $2 text actor · $3 text action, or the part of it before the dot · $4 text target · $5 integer most rows
SELECT seq, at, actor, action, target, before, after FROM dhara.audit_log
WHERE ($1::bigint IS NULL OR seq < $1) AND ($2::text IS NULL OR actor = $2)
  AND ($3::text IS NULL OR action = $3 OR split_part(action, '.', 1) = $3) AND ($4::text IS NULL OR target = $4)
ORDER BY seq DESC LIMIT $5

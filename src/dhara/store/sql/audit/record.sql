-- Put an action on record; called in the transaction of the action itself.
-- $1 text actor · $2 text action · $3 text target · $4 text before and $5 text after (JSON, or NULL)
INSERT INTO dhara.audit_log (actor, action, target, before, after) VALUES ($1, $2, $3, $4::text::json, $5::text::json)

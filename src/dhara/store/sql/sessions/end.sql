-- End a session.
-- $1 bytea digest of its name
DELETE FROM dhara.sessions WHERE digest = $1

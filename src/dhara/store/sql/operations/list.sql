-- Bulk operations, newest first.
-- $1 integer most
SELECT * FROM dhara.operations ORDER BY id DESC LIMIT $1

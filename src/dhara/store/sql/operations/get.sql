-- One bulk operation.
-- $1 uuid id
SELECT * FROM dhara.operations WHERE id = $1

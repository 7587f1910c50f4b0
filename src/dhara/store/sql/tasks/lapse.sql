-- A unique key whose period is over lets others in.
-- $1 uuid id
UPDATE dhara.tasks SET unique_slot = NULL
WHERE id = $1 AND unique_scope = 'period' AND unique_until <= clock_timestamp()

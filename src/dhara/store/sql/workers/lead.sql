-- Take or keep the leadership of a role for $3 seconds; answers a row only to the leader.
-- $1 text role · $2 uuid holder · $3 float8 seconds
INSERT INTO dhara.leaders AS l (role, holder, until)
VALUES ($1, $2, clock_timestamp() + $3 * interval '1 second')
ON CONFLICT (role) DO UPDATE SET holder = EXCLUDED.holder, until = EXCLUDED.until
WHERE l.holder = EXCLUDED.holder OR l.until < clock_timestamp()
RETURNING l.until

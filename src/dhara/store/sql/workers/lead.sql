-- Take or keep the leadership of a role for $3 seconds; answers a row only to the leader: what there is to do. Whether a
-- task has expired, whether the counters have grown long, whether queues have limits, and in how many seconds the next schedule or step of a bulk
-- operation is due.
-- $1 text role · $2 uuid holder · $3 float8 seconds · $4 bigint rows that make the counters long
INSERT INTO dhara.leaders AS l (role, holder, until)
VALUES ($1, $2, clock_timestamp() + $3 * interval '1 second')
ON CONFLICT (role) DO UPDATE SET holder = EXCLUDED.holder, until = EXCLUDED.until
WHERE l.holder = EXCLUDED.holder OR l.until < clock_timestamp()
RETURNING
    COALESCE((SELECT expires_at FROM dhara.tasks WHERE status = 'PENDING' AND expires_at IS NOT NULL
              ORDER BY expires_at LIMIT 1) <= statement_timestamp(), false) AS expired,
    (SELECT count(*) FROM (SELECT FROM dhara.counters LIMIT $4) AS c) >= $4 AS long,
    EXISTS (SELECT FROM dhara.queue_limits) OR EXISTS (SELECT FROM dhara.full_queues) AS limited,
    EXTRACT(EPOCH FROM LEAST((SELECT min(due_at) FROM dhara.operations WHERE state = 'running'),
                             (SELECT min(next_at) FROM dhara.schedules WHERE paused_at IS NULL))
                       - clock_timestamp())::float8 AS chore_in

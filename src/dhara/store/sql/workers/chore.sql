-- In how many seconds the next schedule or step of a bulk operation is due.
SELECT EXTRACT(EPOCH FROM LEAST((SELECT min(due_at) FROM dhara.operations WHERE state = 'running'),
                                (SELECT min(next_at) FROM dhara.schedules WHERE paused_at IS NULL))
                          - clock_timestamp())::float8 AS chore_in

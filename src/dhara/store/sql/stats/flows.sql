-- The flows between states, added up: the source of every counter and of the counts by state.
SELECT event, from_state, to_state, sum(n)::bigint AS n FROM dhara.counters GROUP BY event, from_state, to_state

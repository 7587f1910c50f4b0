-- Fold the counters: many rows, one a statement, become one a flow. SKIP LOCKED keeps two folders apart.
WITH found AS (
    SELECT ctid FROM dhara.counters LIMIT 50000 FOR UPDATE SKIP LOCKED
), gone AS (
    DELETE FROM dhara.counters WHERE ctid = ANY (ARRAY(SELECT ctid FROM found))
    RETURNING n, queue, event, from_state, to_state
)
INSERT INTO dhara.counters (n, queue, event, from_state, to_state)
SELECT sum(n), queue, event, from_state, to_state FROM gone GROUP BY queue, event, from_state, to_state

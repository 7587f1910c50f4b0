-- The shortest retention that a queue has of its own; NULL: none has one.
SELECT min(retention) FROM dhara.queues

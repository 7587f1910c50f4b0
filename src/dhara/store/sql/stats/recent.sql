-- Each queue's oldest sample of the last five minutes: what the rates of now are reckoned from. `age` is seconds.
SELECT DISTINCT ON (queue) queue, EXTRACT(EPOCH FROM statement_timestamp() - at)::float8 AS age, enqueued, completed, depth
FROM dhara.rates WHERE minute > statement_timestamp() - interval '5 minutes' AND queue <> '*'
ORDER BY queue, minute

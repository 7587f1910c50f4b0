-- I10: nobody is reaped before the lease has passed since its last beat (as far as that is still known), nor who was healthy.
-- $1 float8 lease, seconds · $2 uuid[] workers known to have been healthy
SELECT CASE WHEN w.id = ANY ($2::uuid[]) THEN 'a healthy worker was reaped' ELSE 'reaped too early' END AS what, h.task_id,
       format('at %s, worker %s, last beat %s', h.at, w.id, w.beat_at) AS detail
FROM dhara.task_history AS h JOIN dhara.workers AS w ON w.id = h.worker_id
WHERE h.claim_seq IS NOT NULL AND h.reason LIKE '%lease lost%'
  AND (w.id = ANY ($2::uuid[])
       -- Of a worker that has beaten since, its last beat before is not on record.
       OR (w.state = 'lost' AND h.at >= w.beat_at AND h.at < w.beat_at + $1::float8 * interval '1 second'))

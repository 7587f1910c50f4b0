-- Which of these leases have settled already? Asked after a settlement whose reply was lost.
-- $1 uuid[] ids · $2 uuid[] leases
SELECT h.lease FROM unnest($1::uuid[], $2::uuid[]) AS k (id, lease)
JOIN dhara.task_history AS h ON h.task_id = k.id AND h.lease = k.lease AND h.claim_seq IS NOT NULL
WHERE h.event NOT IN ('REAPED')

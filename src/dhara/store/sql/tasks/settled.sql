-- Which of these settlements have been written already? Asked after one whose reply was lost.
-- An end by another event is not theirs: a reaper's. But CANCELED may stand for what they wished, by a cancel request, and
-- COMPLETED for a failure: that of a commit by ctx.transaction() whose reply was lost. Nobody else completes under a lease.
-- $1 uuid[] ids · $2 uuid[] leases · $3 text[] events
SELECT h.lease FROM unnest($1::uuid[], $2::uuid[], $3::text[]) AS k (id, lease, event)
JOIN dhara.task_history AS h ON h.task_id = k.id AND h.lease = k.lease AND h.claim_seq IS NOT NULL
WHERE h.event = k.event OR h.event = 'COMPLETED' OR (h.event = 'CANCELED' AND k.event <> 'COMPLETED')

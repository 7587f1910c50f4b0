"""The chaos runner: a workload, a nemesis, a checker, a verdict (as in Jepsen).

python -m chaos run --seed 1 --minutes 3 --faults F1,F16
python -m chaos list
python -m chaos report

plan        seed -> which fault when: the same seed gives the same schedule
arena       PostgreSQL, proxy, workers: what can be hurt
workload    tasks at a steady rate, and what was promised for each
handlers    what the workers run; they note every start and end in files of their own
faults/     what can be done to an arena, one function a row of the matrix
sizes       how much of a fault there is, in a quick run and in the matrix
nemesis     does it, and keeps the record
measure     what a fault measures while it lasts
soak        what grows over hours, and whether it may
checker     the invariants I1 to I24 over the database and all those files
report      one page a run; the ledger adds the runs up
"""

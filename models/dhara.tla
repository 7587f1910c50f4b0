------------------------------- MODULE dhara -------------------------------
(* The life of tasks under leases: claim, beat, reap with two witnesses, settle (with commits whose reply is lost),
   release of ghosts, cancel, drain, revive, kill and stop. An outage of the database is time that passes without a beat.

   A lease is a number never used before. The variants, one switch each, leave out one rule of the design; TLC must
   refute every one of them (models/check.py).  *)
EXTENDS Naturals, FiniteSets

CONSTANTS Workers, Tasks, MaxLease, MaxRetries,
          NoLeaseInGuard,       \* a settlement is accepted by state alone
          OneWitness,           \* the reaper believes the age of the beat, without having watched
          ClaimWithoutRecheck,  \* a claim does not look again at the state that it saw
          AttemptReset,         \* a revival counts attempts from the beginning
          ReleaseWithoutLease,  \* a ghost is released by task alone
          RetryAfterCancel      \* a failed attempt returns although its cancellation was asked for

VARIABLES row,      \* the table: state, lease, by, att, fails, flag
          life,     \* of each worker: "up", "stopped", "dead"
          runs,     \* what each worker knows that it runs: <<task, lease>>
          saw,      \* what a claimer has seen PENDING, what a comparer has seen as its ghosts
          old,      \* by the database's clock the beat is older than L (a clock may jump)
          watched,  \* the reaper itself has seen the beat stand still for C
          next,     \* the next lease
          claims,   \* history: claims of each task
          ends,     \* history: accepted ends of each lease
          wrong     \* history: what must never happen
vars == <<row, life, runs, saw, old, watched, next, claims, ends, wrong>>

None == 0
Leases == 1..MaxLease
Final == {"COMPLETED", "CANCELED", "DEAD"}
Row == [st: {"PENDING", "RUNNING"} \cup Final, lease: 0..MaxLease, by: Workers \cup {"-"}, att: 0..MaxLease,
        fails: 0..MaxLease, flag: BOOLEAN, gen: 1..2]

Init == /\ row = [t \in Tasks |-> [st |-> "PENDING", lease |-> None, by |-> "-", att |-> 0, fails |-> 0,
                                   flag |-> FALSE, gen |-> 1]]
        /\ life = [w \in Workers |-> "up"]
        /\ runs = [w \in Workers |-> {}]
        /\ saw = [w \in Workers |-> {}]
        /\ old = [w \in Workers |-> FALSE]
        /\ watched = [w \in Workers |-> FALSE]
        /\ next = 1
        /\ claims = [t \in Tasks |-> 0]
        /\ ends = [l \in Leases |-> 0]
        /\ wrong = {}

Works(w) == life[w] = "up"

See(w, t) == /\ Works(w) /\ row[t].st = "PENDING" /\ saw[w] = {}
             /\ saw' = [saw EXCEPT ![w] = {<<"claim", t, None>>}]
             /\ UNCHANGED <<row, life, runs, old, watched, next, claims, ends, wrong>>

(* The reply may be lost: then the worker does not know what it holds. *)
Claim(w, t, heard) ==
    /\ Works(w) /\ <<"claim", t, None>> \in saw[w] /\ next <= MaxLease
    /\ row[t].st = "PENDING" \/ (ClaimWithoutRecheck /\ row[t].st = "RUNNING")
    /\ row' = [row EXCEPT ![t].st = "RUNNING", ![t].lease = next, ![t].by = w, ![t].att = @ + 1]
    /\ runs' = [runs EXCEPT ![w] = IF heard THEN @ \cup {<<t, next>>} ELSE @]
    /\ saw' = [saw EXCEPT ![w] = {}]
    /\ next' = next + 1
    /\ claims' = [claims EXCEPT ![t] = @ + 1]
    /\ wrong' = IF row[t].st # "PENDING" THEN wrong \cup {"claimed twice"} ELSE wrong
    /\ UNCHANGED <<life, old, watched, ends>>

GiveUp(w) == /\ saw[w] # {} /\ Works(w) /\ saw' = [saw EXCEPT ![w] = {}]
             /\ UNCHANGED <<row, life, runs, old, watched, next, claims, ends, wrong>>

(* One end of an attempt under lease l, accepted. *)
Fail(r, blame) ==
    IF r.flag /\ ~RetryAfterCancel THEN [r EXCEPT !.st = "CANCELED"]
    ELSE IF blame /\ r.fails + 1 > MaxRetries THEN [r EXCEPT !.st = "DEAD", !.fails = @ + 1]
    ELSE [r EXCEPT !.st = "PENDING", !.fails = IF blame THEN @ + 1 ELSE @]

Accept(t, l, new) == /\ row' = [row EXCEPT ![t] = new]
                     /\ ends' = [ends EXCEPT ![l] = @ + 1]
                     /\ wrong' = IF row[t].lease # l THEN wrong \cup {"accepted without the lease"} ELSE wrong

Settle(w, t, l, good, heard) ==
    /\ Works(w) /\ <<t, l>> \in runs[w]
    /\ runs' = [runs EXCEPT ![w] = IF heard THEN @ \ {<<t, l>>} ELSE @]
    /\ IF row[t].st = "RUNNING" /\ (row[t].lease = l \/ NoLeaseInGuard)
       THEN Accept(t, l, IF good THEN [row[t] EXCEPT !.st = "COMPLETED"] ELSE Fail(row[t], TRUE))
       ELSE UNCHANGED <<row, ends, wrong>>       \* stale, or written already: looked up by lease, discarded
    /\ UNCHANGED <<life, saw, old, watched, next, claims>>

Drain(w, t, l) == /\ Works(w) /\ <<t, l>> \in runs[w] /\ row[t].st = "RUNNING" /\ row[t].lease = l
                  /\ runs' = [runs EXCEPT ![w] = @ \ {<<t, l>>}]
                  /\ Accept(t, l, Fail(row[t], FALSE))
                  /\ UNCHANGED <<life, saw, old, watched, next, claims>>

SeeGhost(w, t) == /\ Works(w) /\ saw[w] = {} /\ row[t].st = "RUNNING" /\ row[t].by = w
                  /\ <<t, row[t].lease>> \notin runs[w]
                  /\ saw' = [saw EXCEPT ![w] = {<<"ghost", t, row[t].lease>>}]
                  /\ UNCHANGED <<row, life, runs, old, watched, next, claims, ends, wrong>>

Release(w, t, l) == /\ Works(w) /\ <<"ghost", t, l>> \in saw[w]
                    /\ saw' = [saw EXCEPT ![w] = {}]
                    /\ IF row[t].st = "RUNNING" /\ (row[t].lease = l \/ ReleaseWithoutLease)
                       THEN Accept(t, l, Fail(row[t], FALSE))
                       ELSE UNCHANGED <<row, ends, wrong>>
                    /\ UNCHANGED <<life, runs, old, watched, next, claims>>

(* A beat that arrives proves both witnesses wrong. *)
Beat(w) == /\ Works(w) /\ (old[w] \/ watched[w])
           /\ old' = [old EXCEPT ![w] = FALSE] /\ watched' = [watched EXCEPT ![w] = FALSE]
           /\ UNCHANGED <<row, life, runs, saw, next, claims, ends, wrong>>

(* Witness (a): the database's clock passes, also during an outage, when no beat arrives, and may jump. *)
Age(w) == /\ ~old[w] /\ old' = [old EXCEPT ![w] = TRUE]
          /\ UNCHANGED <<row, life, runs, saw, watched, next, claims, ends, wrong>>

(* Witness (b): C seconds of successful reads without a beat. In that time a worker that lives has beaten. *)
Watch(w) == /\ life[w] # "up" /\ ~watched[w] /\ watched' = [watched EXCEPT ![w] = TRUE]
            /\ UNCHANGED <<row, life, runs, saw, old, next, claims, ends, wrong>>

Reap(w, t) == /\ old[w] /\ (watched[w] \/ OneWitness)
              /\ row[t].st = "RUNNING" /\ row[t].by = w
              /\ row' = [row EXCEPT ![t] = Fail(row[t], TRUE)]
              /\ ends' = [ends EXCEPT ![row[t].lease] = @ + 1]
              /\ wrong' = IF life[w] = "up" /\ ~watched[w] THEN wrong \cup {"a live worker was reaped"} ELSE wrong
              /\ UNCHANGED <<life, runs, saw, old, watched, next, claims>>

Cancel(t) == /\ row[t].st \in {"PENDING", "RUNNING"} /\ ~row[t].flag
             /\ row' = [row EXCEPT ![t].flag = TRUE, ![t].st = IF @ = "PENDING" THEN "CANCELED" ELSE @]
             /\ UNCHANGED <<life, runs, saw, old, watched, next, claims, ends, wrong>>

Revive(t) == /\ row[t].st = "DEAD" /\ row[t].gen = 1
             /\ row' = [row EXCEPT ![t].st = "PENDING", ![t].gen = 2, ![t].fails = 0, ![t].flag = FALSE,
                                   ![t].att = IF AttemptReset THEN 0 ELSE @]
             /\ UNCHANGED <<life, runs, saw, old, watched, next, claims, ends, wrong>>

Kill(w) == /\ life[w] = "up" /\ \E o \in Workers \ {w}: life[o] # "dead"
           /\ life' = [life EXCEPT ![w] = "dead"] /\ runs' = [runs EXCEPT ![w] = {}] /\ saw' = [saw EXCEPT ![w] = {}]
           /\ UNCHANGED <<row, old, watched, next, claims, ends, wrong>>
Stop(w) == /\ life[w] = "up" /\ life' = [life EXCEPT ![w] = "stopped"]
           /\ UNCHANGED <<row, runs, saw, old, watched, next, claims, ends, wrong>>
Continue(w) == /\ life[w] = "stopped" /\ life' = [life EXCEPT ![w] = "up"]
               /\ UNCHANGED <<row, runs, saw, old, watched, next, claims, ends, wrong>>

Next == \/ \E w \in Workers, t \in Tasks:
              \/ See(w, t) \/ SeeGhost(w, t) \/ Reap(w, t)
              \/ \E heard \in BOOLEAN: Claim(w, t, heard)
              \/ \E l \in Leases: \/ Drain(w, t, l) \/ Release(w, t, l)
                                  \/ \E good, heard \in BOOLEAN: Settle(w, t, l, good, heard)
        \/ \E w \in Workers: GiveUp(w) \/ Beat(w) \/ Age(w) \/ Watch(w) \/ Kill(w) \/ Stop(w) \/ Continue(w)
        \/ \E t \in Tasks: Cancel(t) \/ Revive(t)

Spec == Init /\ [][Next]_vars
----------------------------------------------------------------------------
Typed == \A t \in Tasks: row[t] \in Row
Nothing_wrong == wrong = {}                                      \* I7, I8, I10: fenced, never claimed twice, two witnesses
One_end == \A l \in Leases: ends[l] <= 1                         \* C4
Attempts == \A t \in Tasks: row[t].att = claims[t]               \* I5: 1..k, also after a revival
Accounted == \A t \in Tasks:                                     \* I13: every claim has ended, or is the row's own
    claims[t] <= Cardinality({l \in Leases: ends[l] > 0}) + (IF row[t].st = "RUNNING" THEN 1 ELSE 0)
Budget == \A t \in Tasks: row[t].fails <= MaxRetries + 1
Canceled_stays == \A t \in Tasks: row[t].flag => row[t].st # "PENDING"   \* I19
=============================================================================

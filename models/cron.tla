-------------------------------- MODULE cron --------------------------------
(* Schedules: each fire time gets exactly one task, whoever fires (C17). One schedule, its row in the database (the next fire
   time, a lock), the records of its fires, and schedulers that look, hold the row, note each fire, and commit the notes, the
   tasks and the next fire time at once (maintenance/scheduler.py, store/sql/schedules/).

   Leadership is a lease row, and may be believed by two: it lapses while its holder is stopped, and who has made a schedule
   fires it without being the leader. A commit whose reply is lost is a commit: the scheduler looks anew. Operators change the schedule, and
   may set its next fire time from a clock that they read before; the clock itself may go back once.

   The lock and the leadership only save work: without both everything still holds (NoLock, NoLeader). The key on the
   records is what counts. Left out: the task's own id and idempotency key, the same whoever fires, are a second guard;
   what overlaps and jitter do.  *)
EXTENDS Naturals, FiniteSets

CONSTANTS Schedulers, Times, End, Most, Troubles,
          NoLock,           \* rivals may hold the row at once
          NoLeader,         \* everybody fires, always
          NoKey,            \* the records have no unique key
          RecordAfter,      \* the tasks in one transaction, records and next fire time in another
          RecordBefore,     \* the other way round
          LateNext,         \* the next fire time comes from the clock at the end, not from the one that the fires come from
          NoChange,         \* nobody changes the schedule, and the clock never goes back
          LeaderForever,    \* leadership does not lapse
          LockSurvives      \* who dies keeps the lock

VARIABLES policy,   \* for fires that were missed: coalesce, skip, catch_up
          now,      \* the database's clock
          coming,   \* the row: the next fire time; End + 1: none
          lock,     \* who holds the row
          fires,    \* the records: what became of each fire time
          leader,   \* the lease row of leadership
          acts,     \* who believes that it leads, or has been told to fire all the same
          turn,     \* of each scheduler: where it is, and what it does
          made,     \* history: tasks of each fire time
          waived,   \* history: fire times that an operator has passed over
          spare     \* how often something may yet go wrong: a death, a step back of the clock, a change by an operator
vars == <<policy, now, coming, lock, fires, leader, acts, turn, made, waived, spare>>

Nobody == "nobody"
Never == End + 1
Idle == [at |-> "idle", seen |-> Never, clock |-> 0, todo |-> {}, notes |-> {}]
After(c) == IF \E t \in Times: t > c THEN CHOOSE t \in Times: t > c /\ \A u \in Times: u > c => t <= u ELSE Never
Last(n, set) == {t \in set: Cardinality({u \in set: u > t}) < n}

Init == /\ policy \in {"coalesce", "skip", "catch_up"}
        /\ now = 0 /\ coming = After(0) /\ lock = Nobody
        /\ fires = [t \in Times |-> "none"]
        /\ leader = Nobody /\ acts = [s \in Schedulers |-> NoLeader] /\ turn = [s \in Schedulers |-> Idle]
        /\ made = [t \in Times |-> 0] /\ waived = {} /\ spare = Troubles

Keeps == UNCHANGED <<policy, made, waived, spare>>

(* Leadership. *)
Lead(s) == /\ leader \in {Nobody, s} /\ ~acts[s] /\ turn[s] = Idle
           /\ leader' = s /\ acts' = [acts EXCEPT ![s] = TRUE]
           /\ UNCHANGED <<now, coming, lock, fires, turn>> /\ Keeps
Lapse == /\ leader = "gone" /\ ~LeaderForever /\ leader' = Nobody
         /\ UNCHANGED <<now, coming, lock, fires, acts, turn>> /\ Keeps
Follow(s) == /\ acts[s] /\ leader # s /\ ~NoLeader /\ turn[s] = Idle
             /\ acts' = [acts EXCEPT ![s] = FALSE]
             /\ UNCHANGED <<now, coming, lock, fires, leader, turn>> /\ Keeps

(* A turn: see that it is due; in one transaction hold the row, note each fire, commit. *)
Look(s) == /\ acts[s] /\ turn[s] = Idle /\ coming <= now
           /\ turn' = [turn EXCEPT ![s].at = "seen", ![s].seen = coming]
           /\ UNCHANGED <<now, coming, lock, fires, leader, acts>> /\ Keeps

Hold(s) == /\ turn[s].at = "seen"
           /\ IF coming = turn[s].seen /\ coming <= now /\ (NoLock \/ lock = Nobody)
              THEN /\ lock' = IF NoLock THEN lock ELSE s
                   /\ turn' = [turn EXCEPT ![s].at = "held", ![s].clock = now,
                        ![s].todo = Last(IF policy = "catch_up" THEN Most ELSE 1, {t \in Times: coming <= t /\ t <= now})]
              ELSE lock' = lock /\ turn' = [turn EXCEPT ![s] = Idle]
           /\ UNCHANGED <<now, coming, fires, leader, acts>> /\ Keeps

(* The first time that is left to do. On record already: passed over. In a rival's transaction: wait for its end. *)
Note(s) ==
    /\ turn[s].at = "held" /\ turn[s].todo # {}
    /\ LET t == CHOOSE t \in turn[s].todo: \A u \in turn[s].todo: t <= u
           what == IF policy = "skip" /\ t < turn[s].clock THEN "missed" ELSE "enqueued"
       IN /\ NoKey \/ \A o \in Schedulers \ {s}: \A n \in turn[o].notes: n[1] # t
          /\ turn' = [turn EXCEPT ![s].todo = @ \ {t},
                                  ![s].notes = IF NoKey \/ fires[t] = "none" THEN @ \cup {<<t, what>>} ELSE @]
    /\ UNCHANGED <<now, coming, lock, fires, leader, acts>> /\ Keeps

Records(s) == fires' = [t \in Times |-> IF \E n \in turn[s].notes: n[1] = t
                                        THEN (CHOOSE n \in turn[s].notes: n[1] = t)[2] ELSE fires[t]]
Advances(s) == coming' = After(IF LateNext THEN now ELSE turn[s].clock)
Enqueues(s) == made' = [t \in Times |-> IF <<t, "enqueued">> \in turn[s].notes THEN made[t] + 1 ELSE made[t]]
Frees(s) == lock' = IF lock = s THEN Nobody ELSE lock
Ready(s) == turn[s].at = "held" /\ turn[s].todo = {}
Halved == RecordAfter \/ RecordBefore

Commit(s) == /\ Ready(s) /\ ~Halved
             /\ Records(s) /\ Advances(s) /\ Enqueues(s) /\ Frees(s)
             /\ turn' = [turn EXCEPT ![s] = Idle]
             /\ UNCHANGED <<policy, now, leader, acts, waived, spare>>
Half(s) == /\ Ready(s) /\ Halved
           /\ turn' = [turn EXCEPT ![s].at = "half"]
           /\ IF RecordAfter THEN Enqueues(s) /\ UNCHANGED <<fires, coming>>
                             ELSE Records(s) /\ Advances(s) /\ UNCHANGED made
           /\ UNCHANGED <<policy, now, lock, leader, acts, waived, spare>>
Other(s) == /\ turn[s].at = "half"
            /\ IF RecordBefore THEN Enqueues(s) /\ UNCHANGED <<fires, coming>>
                               ELSE Records(s) /\ Advances(s) /\ UNCHANGED made
            /\ Frees(s) /\ turn' = [turn EXCEPT ![s] = Idle]
            /\ UNCHANGED <<policy, now, leader, acts, waived, spare>>

(* The transaction is rolled back with its connection; so is a hold that is given up. Who dies starts again. *)
Die(s) == /\ turn[s] # Idle \/ acts[s]
          /\ turn' = [turn EXCEPT ![s] = Idle] /\ acts' = [acts EXCEPT ![s] = NoLeader]
          /\ leader' = IF leader = s THEN "gone" ELSE leader
          /\ IF LockSurvives THEN lock' = lock ELSE Frees(s)
          /\ UNCHANGED <<policy, now, coming, fires, made, waived>>
(* The leader is stopped for longer than its lease, and goes on believing. *)
Stall == /\ leader \in Schedulers /\ leader' = Nobody
         /\ UNCHANGED <<policy, now, coming, lock, fires, acts, turn, made, waived>>
(* It has made the schedule, or changed it, and fires although another leads. *)
Hint(s) == /\ ~acts[s] /\ acts' = [acts EXCEPT ![s] = TRUE]
           /\ UNCHANGED <<policy, now, coming, lock, fires, leader, turn, made, waived>>
Back == /\ ~NoChange /\ now > 0 /\ now' = now - 1
        /\ UNCHANGED <<policy, coming, lock, fires, leader, acts, turn, made, waived>>
(* Resume, change, or delete and make again: the next fire time, from a clock read before. *)
Change == /\ ~NoChange /\ lock = Nobody
          /\ \E c \in 0..now: /\ coming' = After(c)
                              /\ waived' = waived \cup {t \in Times: coming <= t /\ t < After(c)}
          /\ UNCHANGED <<policy, now, lock, fires, leader, acts, turn, made>>
Trouble == spare > 0 /\ spare' = spare - 1 /\ (Change \/ Back \/ Stall \/ \E s \in Schedulers: Die(s) \/ Hint(s))

Tick == now < End /\ now' = now + 1 /\ UNCHANGED <<coming, lock, fires, leader, acts, turn>> /\ Keeps

Turn(s) == Lead(s) \/ Follow(s) \/ Look(s) \/ Hold(s) \/ Note(s) \/ Commit(s) \/ Half(s) \/ Other(s)
Next == Tick \/ Lapse \/ Trouble \/ \E s \in Schedulers: Turn(s)
Spec == Init /\ [][Next]_vars /\ WF_vars(Tick) /\ WF_vars(Lapse) /\ \A s \in Schedulers: WF_vars(Turn(s))
----------------------------------------------------------------------------
Once == \A t \in Times: made[t] <= 1                                       \* C17, I16
On_record == (\A s \in Schedulers: turn[s].at # "half") => \A t \in Times: (made[t] > 0) = (fires[t] = "enqueued")
(* What has been passed was fired, or enough of what came after it: all but the last `Most` may be let go, or all but the
   one that stands for them. *)
Covered == \A t \in Times \ waived: t < coming => \/ fires[t] # "none"
               \/ Cardinality({u \in Times: t < u /\ fires[u] # "none"})
                  >= (IF policy = "catch_up" THEN Most ELSE 1)
Fired == <>[](coming = Never)                                              \* in the end all fire times are behind
=============================================================================

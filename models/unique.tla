------------------------------- MODULE unique -------------------------------
(* Unique keys (C18): while a task keeps its key, no second one comes beside it. Tasks of one type and one key, each enqueued
   by a client of its own in a transaction that may roll back; the partial unique index decides inside the INSERT. Whoever finds
   the key taken in an open transaction waits for its end; whoever finds it taken is answered the holder
   (enqueue.sql, existing.sql, lapse.sql, dhara.enqueue).

   How long a key keeps others out is its scope: until the claim (pending), until the task is final (open), or for a period. A
   revival takes the key again, or finds it taken and is refused.

   `slot` is the index, and says who is in it; `keeps` says who should be. The variants take them apart.  *)
EXTENDS Naturals, FiniteSets

CONSTANTS Tasks, Revivals,
          CheckThenInsert,   \* look first, insert then, without an index
          DirtyAnswer,       \* whoever finds the key taken does not wait for the end of that transaction
          KeyNotFreed,       \* a final task keeps its place in the index
          NotFreedByClaim,   \* scope pending frees no key when the task is claimed
          ReviveWithoutKey,  \* a revival does not take its place again
          PruneInPeriod,     \* a final task goes before its period is over
          NoLapse            \* what is over is left in the index

VARIABLES scope,   \* of each task's key
          st,      \* none, open (inserted, not committed), PENDING, RUNNING, COMPLETED, DEAD, gone
          slot,    \* is in the index
          fresh,   \* not claimed since it was enqueued or revived
          over,    \* its period has passed
          does,    \* where its client is: begins, looks, commits, done; "inserts" where it has looked and found nobody
          answer,  \* whom it was answered
          spare,   \* how many revivals may come
          wrong    \* history: answers that did not hold when they were given
vars == <<scope, st, slot, fresh, over, does, answer, spare, wrong>>

Nobody == "nobody"
Live == {"PENDING", "RUNNING"}
Final == {"COMPLETED", "DEAD"}
Seen == Live \cup Final
(* What the scope says, whatever the index does. *)
Keeps(t) == CASE scope[t] = "pending" -> st[t] = "PENDING" /\ fresh[t]
              [] scope[t] = "open" -> st[t] \in Live
              [] scope[t] = "period" -> st[t] \in Seen \cup {"gone"} /\ ~over[t]
Holders == {t \in Tasks: slot[t] /\ st[t] \in Seen}
Writers == {t \in Tasks: slot[t] /\ st[t] = "open"}

Init == /\ scope \in [Tasks -> {"pending", "open", "period"}]
        /\ st = [t \in Tasks |-> "none"]
        /\ slot = [t \in Tasks |-> FALSE] /\ fresh = [t \in Tasks |-> TRUE] /\ over = [t \in Tasks |-> FALSE]
        /\ does = [t \in Tasks |-> IF CheckThenInsert THEN "looks" ELSE "begins"]
        /\ answer = [t \in Tasks |-> Nobody] /\ spare = Revivals /\ wrong = {}

(* The client of task c. *)
Insert(c) == /\ does[c] = "begins" \/ (CheckThenInsert /\ does[c] = "inserts")
             /\ CheckThenInsert \/ (Holders = {} /\ Writers = {})
             /\ st' = [st EXCEPT ![c] = "open"] /\ slot' = [slot EXCEPT ![c] = TRUE]
             /\ does' = [does EXCEPT ![c] = "commits"]
             /\ UNCHANGED <<scope, fresh, over, answer, spare, wrong>>
Skip(c) == /\ does[c] = "begins" /\ (Holders # {} \/ (DirtyAnswer /\ Writers # {}))
           /\ IF Holders = {} THEN /\ answer' = [answer EXCEPT ![c] = CHOOSE t \in Writers: TRUE]
                                   /\ does' = [does EXCEPT ![c] = "done"]
                              ELSE answer' = answer /\ does' = [does EXCEPT ![c] = "looks"]
           /\ UNCHANGED <<scope, st, slot, fresh, over, spare, wrong>>
(* existing.sql, a statement of its own: the holder may be gone by now, and then all begins again. *)
Look(c) == /\ does[c] = "looks"
           /\ IF Holders = {}
              THEN /\ does' = [does EXCEPT ![c] = IF CheckThenInsert THEN "inserts" ELSE "begins"]
                   /\ UNCHANGED <<slot, answer, wrong>>
              ELSE LET t == CHOOSE t \in Holders: TRUE
                   IN IF scope[t] = "period" /\ over[t]
                      THEN /\ slot' = IF NoLapse THEN slot ELSE [slot EXCEPT ![t] = FALSE]
                           /\ does' = [does EXCEPT ![c] = IF CheckThenInsert THEN "looks" ELSE "begins"]
                           /\ UNCHANGED <<answer, wrong>>
                      ELSE /\ answer' = [answer EXCEPT ![c] = t] /\ does' = [does EXCEPT ![c] = "done"]
                           /\ wrong' = IF Keeps(t) THEN wrong ELSE wrong \cup {c}
                           /\ UNCHANGED slot
           /\ UNCHANGED <<scope, st, fresh, over, spare>>
Commit(c) == /\ does[c] = "commits" /\ st[c] = "open"
             /\ st' = [st EXCEPT ![c] = "PENDING"]
             /\ answer' = [answer EXCEPT ![c] = c] /\ does' = [does EXCEPT ![c] = "done"]
             /\ UNCHANGED <<scope, slot, fresh, over, spare, wrong>>
(* The caller's own, and a connection that is cut: nobody is answered, and nothing remains. *)
Rollback(c) == /\ does[c] = "commits" /\ st[c] = "open"
               /\ st' = [st EXCEPT ![c] = "none"] /\ slot' = [slot EXCEPT ![c] = FALSE]
               /\ does' = [does EXCEPT ![c] = "done"]
               /\ UNCHANGED <<scope, fresh, over, answer, spare, wrong>>

(* The life of task t, each move one statement. *)
Rest == UNCHANGED <<scope, does, answer, wrong>>
Claim(t) == /\ st[t] = "PENDING" /\ st' = [st EXCEPT ![t] = "RUNNING"]
            /\ fresh' = [fresh EXCEPT ![t] = FALSE]
            /\ slot' = IF scope[t] = "pending" /\ ~NotFreedByClaim THEN [slot EXCEPT ![t] = FALSE] ELSE slot
            /\ UNCHANGED <<over, spare>> /\ Rest
Return(t) == /\ st[t] = "RUNNING" /\ st' = [st EXCEPT ![t] = "PENDING"]  \* retried, snoozed, released, reaped
             /\ UNCHANGED <<slot, fresh, over, spare>> /\ Rest
End(t) == /\ st[t] \in Live                                              \* settled, reaped, canceled, expired
          /\ \E to \in Final: st' = [st EXCEPT ![t] = to]
          /\ slot' = IF scope[t] = "period" \/ KeyNotFreed THEN slot ELSE [slot EXCEPT ![t] = FALSE]
          /\ UNCHANGED <<fresh, over, spare>> /\ Rest
(* While another's transaction is open that took the key: it waits. The key taken: refused, nothing happens. *)
Revive(t) == /\ st[t] = "DEAD" /\ spare > 0 /\ spare' = spare - 1
             /\ \/ scope[t] = "period" \/ ReviveWithoutKey
                \/ (Holders \cup Writers) \ {t} = {}
             /\ st' = [st EXCEPT ![t] = "PENDING"] /\ fresh' = [fresh EXCEPT ![t] = TRUE]
             /\ slot' = IF scope[t] = "period" \/ ReviveWithoutKey THEN slot ELSE [slot EXCEPT ![t] = TRUE]
             /\ UNCHANGED over /\ Rest
Pass(t) == /\ scope[t] = "period" /\ st[t] \in Seen \cup {"gone"} /\ ~over[t] /\ over' = [over EXCEPT ![t] = TRUE]
           /\ UNCHANGED <<st, slot, fresh, spare>> /\ Rest
Prune(t) == /\ st[t] \in Final /\ (~slot[t] \/ over[t] \/ PruneInPeriod)
            /\ st' = [st EXCEPT ![t] = "gone"] /\ slot' = [slot EXCEPT ![t] = FALSE]
            /\ UNCHANGED <<fresh, over, spare>> /\ Rest

Client(c) == Insert(c) \/ Skip(c) \/ Look(c) \/ Commit(c)
Next == \E t \in Tasks: \/ Client(t) \/ Rollback(t) \/ Claim(t) \/ Return(t) \/ End(t) \/ Revive(t) \/ Pass(t) \/ Prune(t)
Spec == Init /\ [][Next]_vars /\ \A t \in Tasks: WF_vars(Client(t))
----------------------------------------------------------------------------
Never_two == Cardinality({t \in Tasks: Keeps(t)}) <= 1                     \* C18, I17
Index == Cardinality(Holders \cup Writers) <= 1
Freed == \A t \in Tasks: slot[t] /\ st[t] \in Seen => Keeps(t) \/ (scope[t] = "period" /\ over[t])
Answered_rightly == wrong = {}                                             \* the loser gets whom the key belongs to
Answers_exist == \A c \in Tasks: answer[c] # Nobody => st[answer[c]] \in Seen \cup {"gone"}
Answered == \A c \in Tasks: <>(does[c] = "done")                           \* the loser of a rolled-back winner inserts
=============================================================================

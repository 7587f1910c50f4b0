----------------------------- MODULE eventually -----------------------------
(* What the model of leases promises in the end: every task becomes final (C1), if faults are finite, handlers end (or their
   deadline ends them), and some worker is always up. `spare` counts the faults that may yet come: a reply that is lost, a
   drain, a kill, a stop. An aged beat alone is none: the clock may jump as often as it likes.

   Weak fairness only: what stays possible is done at some time. Nothing is assumed of a worker that is stopped.  *)
EXTENDS dhara

CONSTANTS Faults,
          NoReaper,        \* what a lost worker ran stays its own
          NoGhostRelease,  \* nobody compares what a worker has with what it knows
          StoppedBeats     \* the keeper beats on for a runner that is stopped

VARIABLE spare
all == <<vars, spare>>

Begin == Init /\ spare = Faults

Calm == UNCHANGED spare
Sees(w, t) == See(w, t) /\ Calm
Claims(w, t) == Claim(w, t, TRUE) /\ Calm
Ghosts(w, t) == SeeGhost(w, t) /\ ~NoGhostRelease /\ Calm
Releases(w, t, l) == Release(w, t, l) /\ Calm
Ends(w, t, l) == (\E good \in BOOLEAN: Settle(w, t, l, good, TRUE)) /\ Calm
Reaps(w, t) == Reap(w, t) /\ ~NoReaper /\ Calm
Ages(w) == Age(w) /\ Calm
Watches(w) == Watch(w) /\ Calm
(* What a worker saw is given up only where somebody else was quicker. *)
Late(w) == GiveUp(w) /\ (\E t \in Tasks: <<"claim", t, None>> \in saw[w] /\ row[t].st # "PENDING") /\ Calm

Beats(w) == \/ Beat(w)
            \/ /\ StoppedBeats /\ life[w] = "stopped" /\ old[w]
               /\ old' = [old EXCEPT ![w] = FALSE]
               /\ UNCHANGED <<row, life, runs, saw, watched, next, claims, ends, wrong>>

Fault == \/ \E w \in Workers, t \in Tasks:
              \/ Claim(w, t, FALSE)
              \/ \E l \in Leases: \/ Drain(w, t, l)
                                  \/ \E good \in BOOLEAN: Settle(w, t, l, good, FALSE)
         \/ \E w \in Workers: /\ \E o \in Workers \ {w}: life[o] = "up"
                              /\ Kill(w) \/ Stop(w)

Step == \/ \E w \in Workers: \/ Late(w) \/ Ages(w) \/ Watches(w)
                             \/ (Beats(w) \/ Continue(w)) /\ Calm
                             \/ \E t \in Tasks: \/ Sees(w, t) \/ Claims(w, t) \/ Ghosts(w, t) \/ Reaps(w, t)
                                                \/ \E l \in Leases: Releases(w, t, l) \/ Ends(w, t, l)
        \/ \E t \in Tasks: (Cancel(t) \/ Revive(t)) /\ Calm
        \/ Fault /\ spare > 0 /\ spare' = spare - 1

Fair == \A w \in Workers:
    /\ WF_all(Late(w)) /\ WF_all(Ages(w)) /\ WF_all(Watches(w))
    /\ \A t \in Tasks:
          /\ WF_all(Sees(w, t)) /\ WF_all(Claims(w, t)) /\ WF_all(Ghosts(w, t)) /\ WF_all(Reaps(w, t))
          /\ \A l \in Leases: WF_all(Releases(w, t, l)) /\ WF_all(Ends(w, t, l))

Life == Begin /\ [][Step]_all /\ Fair
----------------------------------------------------------------------------
Eventually_final == \A t \in Tasks: <>[](row[t].st \in Final)
(* No task waits because the model has run out of leases. *)
Leases_suffice == (\E t \in Tasks: row[t].st = "PENDING") => next <= MaxLease
=============================================================================

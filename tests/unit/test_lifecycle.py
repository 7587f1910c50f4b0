"""The one table of the life cycle, all of it."""

from __future__ import annotations

import itertools

import pytest

from dhara.domain.lifecycle import FINAL, NOTES, TRANSITIONS, Event, IllegalMove, State, move

# As trust.md 1.4 has it, written out a second time.
EXPECTED = """
PENDING CLAIMED RUNNING · PENDING CANCELED CANCELED · PENDING EXPIRED DEAD
RUNNING COMPLETED COMPLETED · RUNNING RETRIED PENDING · RUNNING SNOOZED PENDING · RUNNING RELEASED PENDING
RUNNING REAPED PENDING · RUNNING CANCELED CANCELED · RUNNING DEAD DEAD · DEAD REVIVED PENDING
"""
ALLOWED = {tuple(line.split()) for line in EXPECTED.replace("\n", " · ").split(" · ") if line.strip()}


def test_the_table_is_the_contract() -> None:
    assert {(s, e, t) for s, moves in TRANSITIONS.items() for e, t in moves.items()} == ALLOWED
    assert set(TRANSITIONS) == set(State)


@pytest.mark.parametrize(("state", "event"), list(itertools.product(State, Event)))
def test_every_pair(state: State, event: Event) -> None:
    allowed = {(s, e): t for s, e, t in ALLOWED}
    if event in NOTES:
        assert move(state, event) is state
    elif (state, event) in allowed:
        assert move(state, event) == allowed[state, event]
    else:
        with pytest.raises(IllegalMove) as caught:
            move(state, event)
        assert (caught.value.state, caught.value.event) == (state, event)
        assert state in str(caught.value)


def test_final_states_lead_nowhere_but_dead_which_can_be_revived() -> None:
    assert {state for state in State if not TRANSITIONS[state]} == FINAL - {State.DEAD}
    assert TRANSITIONS[State.DEAD] == {Event.REVIVED: State.PENDING}


def test_every_event_is_a_move_a_note_a_birth_or_an_end() -> None:
    moves = {event for moves in TRANSITIONS.values() for event in moves}
    assert moves | NOTES | {Event.ENQUEUED, Event.PRUNED} == set(Event)
    assert not moves & NOTES

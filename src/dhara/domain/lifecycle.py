"""The life cycle of a task, as one table.

Rule 1: every state, every event and every allowed move stands here. The database's own guard (the triggers of
migration 0001), the docs' state diagram and the tests are made from, or compared with, this table.
"""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    """The five states of a task, as stored and as shown."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    COMPLETED = "COMPLETED"
    CANCELED = "CANCELED"
    DEAD = "DEAD"


class Event(StrEnum):
    """What can happen to a task; the `event` of its log rows."""

    ENQUEUED = "ENQUEUED"
    CLAIMED = "CLAIMED"
    COMPLETED = "COMPLETED"
    RETRIED = "RETRIED"
    SNOOZED = "SNOOZED"
    RELEASED = "RELEASED"
    REAPED = "REAPED"
    DEAD = "DEAD"
    CANCELED = "CANCELED"
    EXPIRED = "EXPIRED"
    REVIVED = "REVIVED"
    PRUNED = "PRUNED"
    # Notes: they change no state.
    CANCEL_REQUESTED = "CANCEL_REQUESTED"
    SETTLE_REJECTED = "SETTLE_REJECTED"
    PROGRESS = "PROGRESS"
    REPLACED = "REPLACED"
    RESCHEDULED = "RESCHEDULED"


TRANSITIONS: dict[State, dict[Event, State]] = {
    State.PENDING: {
        Event.CLAIMED: State.RUNNING,
        Event.CANCELED: State.CANCELED,
        Event.EXPIRED: State.DEAD,
    },
    State.RUNNING: {
        Event.COMPLETED: State.COMPLETED,
        Event.RETRIED: State.PENDING,
        Event.SNOOZED: State.PENDING,
        Event.RELEASED: State.PENDING,
        Event.REAPED: State.PENDING,
        Event.CANCELED: State.CANCELED,
        Event.DEAD: State.DEAD,
    },
    State.DEAD: {Event.REVIVED: State.PENDING},
    State.COMPLETED: {},
    State.CANCELED: {},
}

FINAL = frozenset({State.COMPLETED, State.CANCELED, State.DEAD})
NOTES = frozenset({Event.CANCEL_REQUESTED, Event.SETTLE_REJECTED, Event.PROGRESS, Event.REPLACED, Event.RESCHEDULED})


class IllegalMove(ValueError):
    """An event that the life cycle does not allow in that state."""

    def __init__(self, state: State, event: Event) -> None:
        allowed = ", ".join(TRANSITIONS[state]) or "nothing"
        super().__init__(f"{event} is not allowed for a {state} task; allowed: {allowed}")
        self.state = state
        self.event = event


def move(state: State, event: Event) -> State:
    """Where `event` leads from `state`. Raises `IllegalMove` where it leads nowhere."""
    if event in NOTES:
        return state
    try:
        return TRANSITIONS[state][event]
    except KeyError:
        raise IllegalMove(state, event) from None

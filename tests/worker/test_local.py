"""The claims that wait for a slot."""

from __future__ import annotations

from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from dhara.domain.task import Claim
from dhara.store.tasks import BEGINNING
from dhara.worker.local import Local


def claim(id: int, queue: str) -> Claim:
    return Claim(UUID(int=id), UUID(int=id), "t", queue, 0, BEGINNING, "{}", 1, 0, 0, 0, 1, 5, None, None, BEGINNING)


def test_a_flood_that_was_claimed_ahead_lets_another_queue_pass() -> None:
    local = Local()
    local.extend(claim(n, "flood") for n in range(50))
    assert local.popleft().queue == "flood"
    local.extend([claim(100, "mail"), claim(101, "mail")])
    assert [local.popleft().queue for _ in range(5)] == ["flood", "mail", "flood", "mail", "flood"]


@given(st.lists(st.sampled_from(["a", "b", "c", None, "out"])))
def test_nothing_is_lost_and_each_queue_keeps_its_order(moves: list[str | None]) -> None:
    """A letter: a claim of that queue comes; None: one begins, if any waits; out: the newest is taken out."""
    local, waiting, begun = Local(), list[Claim](), list[Claim]()
    for n, queue in enumerate(moves):
        if queue == "out":
            if waiting:
                local.remove(waiting.pop())
        elif queue is not None:
            waiting.append(claim(n, queue))
            local.extend(waiting[-1:])
        elif waiting:
            begun.append(local.popleft())
            waiting.remove(begun[-1])
        assert len(local) == len(waiting)
        assert set(local) == set(waiting)
    for name in "abc":
        ids = [one.id for one in [*begun, *local] if one.queue == name]
        assert ids == sorted(ids)

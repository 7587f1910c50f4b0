"""The watermarks of a claimer."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from dhara.domain.task import Claim
from dhara.store.tasks import BEGINNING, ZERO, Lane, Watermark
from dhara.worker.lanes import Lanes

START = datetime(2026, 1, 1, tzinfo=UTC)


def claim(seconds: float, id: int = 1, queue: str = "q", priority: int = 0) -> Claim:
    at = START + timedelta(seconds=seconds)
    return Claim(UUID(int=id), UUID(int=0), "t", queue, priority, at, "{}", 1, 0, 0, 0, 1, 5, None, None, at)


def ready(queue: str = "q", priority: int = 0) -> Lane:
    return Lane(queue, priority, True, -1.0)


def later(queue: str = "q", priority: int = 0) -> Lane:
    return Lane(queue, priority, False, 60.0)


def marks(lanes: Lanes) -> dict[tuple[str, int], tuple[datetime, UUID]]:
    return {(w.queue, w.priority): (w.run_at, w.id) for w in lanes.known({}, 100)}


def test_nothing_known_nothing_claimed() -> None:
    assert Lanes({"*": 5}).known({}, 100) == []
    assert not Lanes({"*": 5}).seen([])


def test_a_new_lane_starts_at_its_front() -> None:
    lanes = Lanes({"*": 5})
    assert lanes.seen([ready()])
    assert lanes.known({}, 7) == [Watermark("q", 0, BEGINNING, ZERO, 7)]


def test_the_mark_moves_up_with_claims_and_never_down() -> None:
    lanes = Lanes({"*": 5})
    lanes.seen([ready()])
    lanes.took([claim(1), claim(2), claim(3, 8), claim(3, 9)])
    assert marks(lanes) == {("q", 0): (START + timedelta(seconds=3), UUID(int=9))}
    lanes.took([claim(2, 100)])
    assert marks(lanes) == {("q", 0): (START + timedelta(seconds=3), UUID(int=9))}


def test_a_scan_that_finds_a_ready_task_starts_over() -> None:
    """Whatever committed late, below the mark, is found by it."""
    lanes = Lanes({"*": 5})
    lanes.seen([ready(), ready("r")])
    lanes.took([claim(5), claim(5, queue="r")])
    assert lanes.seen([ready(), later("r")])
    assert marks(lanes) == {("q", 0): (BEGINNING, ZERO), ("r", 0): (START + timedelta(seconds=5), UUID(int=1))}


def test_an_empty_lane_is_remembered_with_its_mark_and_forgotten_in_the_end() -> None:
    """So that its next task is claimed at the wake-up itself, without a scan before it."""
    lanes = Lanes({"*": 5})
    lanes.seen([ready("a"), ready("b", 3)])
    lanes.took([claim(5, queue="a")])
    assert not lanes.seen([later("b", 3)])
    assert marks(lanes)["a", 0] == (START + timedelta(seconds=5), UUID(int=1))
    for _ in range(200):
        assert not lanes.seen([later("b", 3)])
    assert list(marks(lanes)) == [("b", 3)]


def test_few_empty_lanes_are_remembered_those_that_ran_empty_last() -> None:
    lanes = Lanes({"*": 5})
    lanes.seen([ready(f"old{n}") for n in range(500)])
    lanes.seen([ready("new")])
    lanes.seen([])
    assert len(lanes) <= 50
    assert ("new", 0) in marks(lanes)


def test_only_queues_that_are_served() -> None:
    lanes = Lanes({"mail": 5, "sms": 1})
    assert lanes.serves("mail") and not lanes.serves("other")
    assert not lanes.seen([ready("other")])
    assert lanes.seen([ready("other"), ready("sms")])
    assert list(marks(lanes)) == [("sms", 0)]


def test_high_priorities_first_within_a_queue() -> None:
    lanes = Lanes({"*": 5})
    lanes.seen([ready("q", p) for p in (0, 100, 50)])
    assert [w.priority for w in lanes.known({}, 10)] == [100, 50, 0]


def test_queues_take_turns_at_the_front() -> None:
    lanes = Lanes({"*": 5})
    lanes.seen([ready(q, p) for q in "abc" for p in (0, 1)])
    fronts = []
    for _ in range(6):
        order = [w.queue for w in lanes.known({}, 10)]
        assert sorted(order) == list("aabbcc")
        fronts.append(order[0])
    assert {fronts.count(q) for q in "abc"} == {2}


def test_full_queues_are_left_out() -> None:
    lanes = Lanes({"a": 2, "b": 2})
    lanes.seen([ready("a"), ready("b")])
    assert [(w.queue, w.room) for w in lanes.known({"a": 0, "b": 2}, 10)] == [("b", 2)]
    assert [(w.queue, w.room) for w in lanes.known({"a": -3, "b": 20}, 10)] == [("b", 10)]


queues = st.sampled_from("ab")
priorities = st.sampled_from([0, 5, 100])


@given(
    st.lists(
        st.one_of(
            st.lists(st.builds(Lane, queues, priorities, st.booleans(), st.just(1.0)), max_size=4),
            st.lists(st.builds(claim, st.integers(0, 9), st.integers(1, 99), queues, priorities), max_size=4),
        ),
        max_size=20,
    )
)
def test_no_ready_lane_is_ever_above_what_the_last_scan_saw(steps: list[list[Lane] | list[Claim]]) -> None:
    """After a scan, every lane that it found ready is claimed from its front, and each lane is asked once."""
    lanes = Lanes({"*": 5})
    for step in steps:
        if step and isinstance(step[0], Claim):
            lanes.took([item for item in step if isinstance(item, Claim)])  # type: ignore[redundant-expr]
        else:
            found = {(lane.queue, lane.priority): lane for lane in step if isinstance(lane, Lane)}
            assert lanes.seen(list(found.values())) == any(lane.ready for lane in found.values())
            now = marks(lanes)
            assert set(now) >= set(found)
            assert all(now[key] == (BEGINNING, ZERO) for key, lane in found.items() if lane.ready)
        known = [(w.queue, w.priority) for w in lanes.known({}, 10)]
        assert len(known) == len(set(known)) == len(lanes)


def test_a_full_claim_has_gone_through_the_lanes_before_its_last_task() -> None:
    """They hold nothing for this worker; what commits a moment later does not fall below their marks."""
    lanes = Lanes({"*": 5})
    lanes.seen([ready(priority=9), ready(priority=5), ready(priority=1)])
    asked, at = lanes.known({}, 2), START + timedelta(seconds=60)
    claims = [claim(1, priority=5), claim(2, priority=5)]
    lanes.took(claims)
    lanes.passed(asked, claims, 2, at)
    assert marks(lanes) == {
        ("q", 9): (at - timedelta(seconds=2), ZERO),
        ("q", 5): (START + timedelta(seconds=2), UUID(int=1)),
        ("q", 1): (BEGINNING, ZERO),
    }
    lanes.passed(asked, claims[:1], 2, at)
    assert marks(lanes)["q", 1] == (at - timedelta(seconds=2), ZERO)


def test_a_lane_whose_queue_had_no_more_room_has_not_been_gone_through() -> None:
    lanes = Lanes({"*": 5})
    lanes.seen([ready(), ready("r")])
    asked = lanes.known({"q": 1}, 2)
    lanes.passed(asked, [claim(1, queue="q")], 2, START)
    assert set(marks(lanes).values()) == {(BEGINNING, ZERO)}


def fronts(lanes: Lanes, served: int, times: int) -> str:
    """Which queue stands first in so many claims, if that one gets everything."""
    found = ""
    for _ in range(times):
        found += (front := lanes.known({}, served)[0].queue)
        lanes.took([claim(1, queue=front) for _ in range(served)])
    return found


def test_who_was_given_less_comes_first() -> None:
    """So a queue that asks for little waits for no turn, however much another one holds (F59)."""
    lanes = Lanes({"*": 5})
    lanes.seen([ready("flood"), ready("light")])
    for _ in range(9):
        lanes.took([claim(1, queue="flood") for _ in range(6)] + [claim(1, queue="light")])
        assert [w.queue for w in lanes.known({}, 7)] == ["light", "flood"]


def test_a_rest_gives_a_queue_no_more_than_a_few_rounds() -> None:
    """After them it shares evenly: one that was quiet and then floods must not keep the others waiting."""
    lanes = Lanes({"*": 5})
    lanes.seen([ready("steady"), ready("rested")])
    lanes.known({}, 5)
    lanes.took([claim(1, queue="steady") for _ in range(1_000)])
    order = fronts(lanes, 5, 24)
    assert order.startswith("rested" * 4), "what it is given first"
    assert order.removeprefix("rested" * 4).count("steady") == 10, "and then every other claim"


def test_a_new_queue_is_as_good_as_the_others() -> None:
    lanes = Lanes({"*": 5})
    lanes.seen([ready("a"), ready("b")])
    lanes.known({}, 5)
    lanes.took([claim(1, queue=queue) for queue in "ab" for _ in range(1_000)])
    lanes.seen([ready("a"), ready("b"), ready("new")])
    assert sorted(fronts(lanes, 5, 3)) == sorted("abnew")

"""The watermarks of a claimer: where in each lane (queue, priority) the next claim starts.

A claim that started from the front of the index each time would wade through the dead entries of all tasks claimed
before it, which nothing can remove while some transaction pins the xmin horizon. So the claimer remembers, per lane,
the last task it took, and starts above it. A scan of all lanes (`store.tasks.lanes`) puts right what that misses: tasks
that committed late with an older `run_at`, new lanes, revived tasks.

The queues of one claim stand in an order, since the first may take all of it: who has been given least comes first, and
equals take turns. A queue that asks for little is therefore served at once, however many tasks wait in another. What a queue
has not asked for it cannot save up: it is never further behind the one with the most than a few rounds of all slots,
so that a queue which floods after a long rest soon gets no more than its equal part either.

A lane that has run empty is remembered for a while: its next task is then claimed at the wake-up itself, without a scan
before it.

A lane may begin with a long backlog that this worker cannot claim: tasks of types that it does not know. A claim that has gone
through the whole of a lane and come back short has seen them all, so the watermark moves past them, to the moment of the
scan; whatever is enqueued later lies above. How often the lane is looked at from its front again depends on what that costs;
where no claim gets through, `passes` walks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from datetime import datetime, timedelta
from uuid import UUID

from dhara.domain.task import Claim
from dhara.store.tasks import BEGINNING, ZERO, Lane, Watermark

ALL_QUEUES = "*"
# An empty lane is forgotten after so many scans, or when so many others are remembered.
_PATIENCE = 100
_REMEMBERED = 32
# Transactions that had made their tasks before a scan and commit after it are mostly shorter than this.
_STRADDLE = timedelta(seconds=2)
# A queue is given at most so many tasks a slot before others, for having asked for little.
_CREDIT = 4


class Lanes:
    """The lanes that this worker serves, each with its watermark."""

    def __init__(self, queues: Mapping[str, int]) -> None:
        self._serves = None if ALL_QUEUES in queues else frozenset(queues)
        self._marks: dict[tuple[str, int], tuple[datetime, UUID]] = {}
        self._absent: dict[tuple[str, int], int] = {}
        self._turn = 0
        self._credit = _CREDIT * sum(queues.values())
        self._given: dict[str, int] = {}  # tasks by queue; kept only while several queues are known

    def serves(self, queue: str) -> bool:
        return self._serves is None or queue in self._serves

    def knows(self, queue: str) -> bool:
        """Whether any lane of the queue is known to hold tasks."""
        return any(queue == known for known, _ in self._marks)

    def seen(self, lanes: Sequence[Lane], from_front: bool = True, long: Container[tuple[str, int]] = ()) -> bool:
        """Take in a scan. With `from_front`, lanes with a ready task start from the front again, but for the `long` ones.

        True if there are any with a ready task.
        """
        served = [lane for lane in lanes if self.serves(lane.queue)]
        keys = {(lane.queue, lane.priority) for lane in served}
        self._forget(self._marks.keys() - keys)
        for lane in served:
            if lane.ready and from_front and (lane.queue, lane.priority) not in long:
                self._marks[lane.queue, lane.priority] = (BEGINNING, ZERO)
            else:
                self._marks.setdefault((lane.queue, lane.priority), (BEGINNING, ZERO))
        return any(lane.ready for lane in served)

    def _forget(self, empty: AbstractSet[tuple[str, int]]) -> None:
        """Count for how many scans each lane has been empty; drop those that have been for longest."""
        absent = {key: self._absent.get(key, 0) + 1 for key in empty}
        kept = sorted((key for key, scans in absent.items() if scans < _PATIENCE), key=absent.__getitem__)[:_REMEMBERED]
        self._absent = {key: absent[key] for key in kept}
        for key in empty - self._absent.keys():
            del self._marks[key]

    def took(self, claims: Iterable[Claim]) -> None:
        """Move the watermarks up behind what was claimed; the claims of a lane come in its order."""
        for key, claim in {(claim.queue, claim.priority): claim for claim in claims}.items():
            mark = (claim.run_at, claim.id)
            if key not in self._marks or mark > self._marks[key]:
                self._marks[key] = mark
        if self._given:
            for claim in claims:
                if claim.queue in self._given:
                    self._given[claim.queue] += 1

    def back(self, key: tuple[str, int], mark: tuple[datetime, UUID]) -> None:
        """Claim the lane from `mark` again, however far it has been passed."""
        if key in self._marks:
            self._marks[key] = mark

    def passed(self, lanes: Iterable[Watermark], claims: Sequence[Claim], most: int, at: datetime) -> None:
        """A claim of at most `most` has come back: lanes that it has gone through to the end hold nothing for this worker up to
        `at`, but for what commits later: all of them if it came back short, else those before the last that yielded a task."""
        taken, asked = Counter((claim.queue, claim.priority) for claim in claims), list(lanes)
        if len(claims) >= most:
            last = max(n for n, lane in enumerate(asked) if taken[lane.queue, lane.priority])
            asked = asked[:last]
        of_queue: Counter[str] = Counter()
        through = []
        for lane in asked:
            of_queue[lane.queue] += taken[lane.queue, lane.priority]
            if of_queue[lane.queue] < lane.room:
                through.append(lane)
            elif len(claims) < most:
                return  # what a queue had beyond its room may have used up the claim before the next lane's turn
        self.left(through, at)

    def left(self, lanes: Iterable[Watermark], at: datetime) -> None:
        """Begin the next claims of these lanes shortly before `at`: what was under way then may have committed since."""
        for lane in lanes:
            key = (lane.queue, lane.priority)
            if key in self._marks:
                self._marks[key] = max(self._marks[key], (at - _STRADDLE, ZERO))

    def known(self, rooms: Mapping[str, int], most: int) -> list[Watermark]:
        """The lanes to claim from: queues that were given least first, equals in turn; within each, high priorities first.

        `rooms`: most tasks a queue may still yield; queues without an entry have `most`.
        """
        place = {queue: i for i, queue in enumerate(self._in_order())}
        keys = sorted(self._marks, key=lambda key: (place[key[0]], -key[1]))
        return [
            Watermark(queue, priority, *self._marks[queue, priority], room)
            for queue, priority in keys
            if (room := min(most, rooms.get(queue, most))) > 0
        ]

    def _in_order(self) -> list[str]:
        """The known queues, who has been given least first; who is new begins beside the one that has the most."""
        queues = sorted({queue for queue, _ in self._marks})
        if len(queues) < 2:
            self._given = {}
            return queues
        most = max(self._given.values(), default=0)
        self._given = {queue: max(self._given.get(queue, most), most - self._credit) for queue in queues}
        self._turn += 1
        turn = self._turn % len(queues)
        return sorted(queues[turn:] + queues[:turn], key=self._given.__getitem__)

    def __len__(self) -> int:
        return len(self._marks)

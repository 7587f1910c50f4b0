"""What must be true of every story: the invariants of `trust.md` 1.6 that a history and the handlers' own notes can tell."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from uuid import UUID

from dhara.domain.lifecycle import FINAL, NOTES, Event, State, move
from tests.sim.store import Entry
from tests.sim.world import C, Fault, H, L, R, Start, Story

_MARGIN = 3 * H + R
_BEFORE = L + C + R + _MARGIN
SOON = 3.0  # the keeper's two seconds, and the network's


def judge(story: Story) -> list[str]:
    """Everything that is wrong with it, each with the task's history."""
    found = []
    of_task: dict[UUID, list[Entry]] = defaultdict(list)
    for entry in story.db.history:
        of_task[entry.task].append(entry)
    for task, entries in of_task.items():
        starts = [start for start in story.starts if start.task == task]
        wrong = [
            *_path(story, task, entries), *_attempts(story, task, entries), *_cancels(entries), *_starts(entries, starts),
            *_overlaps(story, starts), *_outcomes(story, entries, starts), *_rejections(entries),
        ]  # fmt: skip
        if wrong:
            found += [f"{what}\n{_told(story, task, entries, starts)}" for what in wrong]
    return [*found, *_healthy_reaped(story), *_taken_back(story)]


def _told(story: Story, task: UUID, entries: list[Entry], starts: list[Start]) -> str:
    lines = [f"  seed {story.seed}, task {task}, {story.db.rows[task].new.type} {story.db.rows[task].new.payload}"]
    told = [
        (e.at, f"{e.event} attempt {e.attempt} lease {str(e.lease)[:8]} {e.reason or e.wished or ''}") for e in entries
    ]
    told += [(s.at, f"  started in process {s.process}, lease {str(s.lease)[:8]}, until {s.end}") for s in starts]
    told += [(f.at, f"  fault: {f.kind} {f.processes} until {f.until}") for f in story.faults]
    return "\n".join(lines + [f"  {at:10.3f} {text}" for at, text in sorted(told)])


def _path(story: Story, task: UUID, entries: list[Entry]) -> Iterator[str]:
    state = State.PENDING
    for entry in entries[1:]:
        state = move(state, Event(entry.event))  # raises where I4 is broken
    if story.db.rows[task].state is not state:
        yield f"I4: the row says {story.db.rows[task].state}, its history {state}"
    if state not in FINAL:
        yield f"I3: still {state} after {story.seconds:.0f} s"


def _attempts(story: Story, task: UUID, entries: list[Entry]) -> Iterator[str]:
    claims = [entry for entry in entries if entry.event == Event.CLAIMED]
    if [claim.attempt for claim in claims] != list(range(1, len(claims) + 1)):
        yield "I5: attempts have a gap or a repeat"
    if len({claim.lease for claim in claims}) != len(claims):
        yield "I6: a lease occurs in two claims"
    row = story.db.rows[task]
    if row.failures > row.new.max_retries + 1 or row.crashes > 3:
        yield f"I5: {row.failures} failures and {row.crashes} crashes of {row.new.max_retries} retries"
    for claim, end in zip(claims, _ends(entries), strict=False):
        if end.lease != claim.lease:
            yield "I8: an attempt was ended by another one's lease"


def _ends(entries: list[Entry]) -> list[Entry]:
    """What ended attempts, in order."""
    running, ends = False, []
    for entry in entries:
        if entry.event == Event.CLAIMED:
            running = True
        elif running and Event(entry.event) not in NOTES:
            ends.append(entry)
            running = False
    return ends


def _cancels(entries: list[Entry]) -> Iterator[str]:
    asked: set[int] = set()
    for entry in entries:
        if entry.event == Event.CANCEL_REQUESTED:
            asked.add(entry.generation)
        elif entry.event == Event.CLAIMED and entry.generation in asked:
            yield "I19: a new attempt after a cancel request"


def _starts(entries: list[Entry], starts: list[Start]) -> Iterator[str]:
    claimed = {entry.lease for entry in entries if entry.event == Event.CLAIMED}
    for lease, times in Counter(start.lease for start in starts).items():
        if lease not in claimed:
            yield "I13: a start without a claim"
        if times > 1:
            yield f"I13: {times} starts under one lease"


def _overlaps(story: Story, starts: list[Start]) -> Iterator[str]:
    """I12: not for `exclusive`, but where the whole worker stood still, or where both witnesses err."""
    ordered = sorted(starts, key=lambda start: start.at)
    for first, second in zip(ordered, ordered[1:], strict=False):
        over = _over(story, first)
        if (
            first.exclusive
            and over > second.at
            and not _frozen(story, first, over, second)
            and not _blind(story, second.at)
        ):
            yield f"I12: exclusive, and two run at {second.at:.3f}"


def _frozen(story: Story, first: Start, over: float, second: Start) -> bool:
    """Whether its process stood still as the second began, when nothing can act, and it ended within two seconds of going on."""
    stills = (fault for fault in story.faults if fault.kind == "still" and first.process in fault.processes)
    return any(fault.at <= second.at and over <= fault.until + 2.0 for fault in stills)


def _over(story: Story, start: Start) -> float:
    """When it ended: by itself, or with its process."""
    end = float("inf") if start.end is None else start.end
    return min(end, story.killed.get(start.process, float("inf")))


def _outcomes(story: Story, entries: list[Entry], starts: list[Start]) -> Iterator[str]:
    """What a handler brought to its end is on record, unless its worker was hurt or somebody asked for a cancellation."""
    events = {entry.lease: entry.event for entry in entries if Event(entry.event) not in NOTES | {Event.CLAIMED}}
    for start in starts:
        if not start.well or _hurt(story, start.process, start.at, _writable(story, start.end or start.at)):
            continue
        if events.get(start.lease) != Event.COMPLETED:
            yield f"I4: a handler of a healthy worker ended well, on record is {events.get(start.lease)}"


def _writable(story: Story, at: float) -> float:
    """When what ended `at` could be written: while the database is away, outcomes wait in their workers."""
    for away in (fault for fault in story.faults if fault.kind == "away"):
        if away.at - _MARGIN <= at <= away.until:
            at = away.until
    return at


def _hurt(story: Story, process: int, since: float, until: float) -> bool:
    """Whether the process, or another of its worker such as the keeper that beats for it, met with what may cost it its leases."""
    return any(
        fault.at <= until + _BEFORE and _until(fault, process) >= since - _BEFORE
        for fault in story.faults
        if fault.kind in ("kill", "still", "partition", "drain") and _near(story, process, fault)
    )


def _until(fault: Fault, process: int) -> float:
    ends = fault.kind in ("kill", "drain") and process in fault.processes
    return float("inf") if ends else max(fault.at, fault.until)


def _near(story: Story, process: int, fault: Fault) -> bool:
    return any(story.worker_of[hurt] == story.worker_of[process] for hurt in fault.processes)


def _rejections(entries: list[Entry]) -> Iterator[str]:
    """A settlement is refused only if it was not the one that ended the attempt."""
    for refused in (entry for entry in entries if entry.event == Event.SETTLE_REJECTED):
        for entry in entries:
            ended = Event(entry.event) not in NOTES | {Event.CLAIMED}
            if ended and entry.lease == refused.lease and entry.event == refused.wished:
                yield f"C5: {refused.wished} is on record, and so is its refusal"


def _healthy_reaped(story: Story) -> Iterator[str]:
    """I10: nobody loses a lease whose worker could beat."""
    process_of = {worker: process for process, worker in story.ids.items()}
    for entry in story.db.history:
        if entry.worker is None or "lease lost" not in (entry.reason or ""):
            continue
        process = process_of[entry.worker]
        if not _hurt(story, process, entry.at, entry.at) and not _blind(story, entry.at):
            yield f"I10: a healthy worker was reaped\n{_told(story, entry.task, [entry], [])}"


def _blind(story: Story, at: float) -> bool:
    """Where the clock has jumped, age says nothing; if in that moment no beats arrive either, both witnesses err."""
    jumped = [fault for fault in story.faults if fault.kind == "jump" and at - _BEFORE <= fault.at <= at]
    silent = [fault for fault in story.faults if fault.kind == "partition" and fault.at <= at <= fault.until + _BEFORE]
    return bool(jumped) and (story.troubled or bool(silent))


def _taken_back(story: Story) -> Iterator[str]:
    """I11, for a runner that died alone: its keeper takes back at once what it held."""
    for fault in story.faults:
        runner = fault.processes[0] if fault.kind == "kill" else 0
        if runner not in story.ids or _troubled(story, fault):
            continue
        for held in _held(story, story.ids[runner], fault.at):
            yield f"I11: not taken back within {SOON:g} s of its runner's death\n{_told(story, held.task, [held], [])}"


def _troubled(story: Story, fault: Fault) -> bool:
    """Whether anything else happened that may keep the keeper from it."""
    return story.troubled or any(
        other is not fault and other.at <= fault.at + SOON and max(other.at, other.until) >= fault.at - SOON
        for other in story.faults
    )


def _held(story: Story, worker: UUID, at: float) -> Iterator[Entry]:
    """Claims from before `at` that had not ended a little later."""
    for entry in story.db.history:
        if entry.event == Event.CLAIMED and entry.worker == worker and entry.at < at:
            ends = (
                e.at
                for e in story.db.history
                if e.lease == entry.lease and Event(e.event) not in NOTES | {Event.CLAIMED}
            )
            if next(ends, float("inf")) > at + SOON:
                yield entry

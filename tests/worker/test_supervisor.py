"""The supervisor's decisions, one by one; its life with real processes is in tests/e2e."""

from __future__ import annotations

import re
import signal
import time
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from dhara import ConfigError, Registry
from dhara.settings import Settings
from dhara.worker.entry import RELEASE, load_registry
from dhara.worker.keeper import Died, Leave
from dhara.worker.supervisor import Supervisor, WorkerSpec, supervise


def _registry() -> Registry:
    tasks = Registry()

    @tasks.task("t")
    async def t() -> None: ...

    return tasks


class Watched(Supervisor):
    """Starts nothing and kills nobody; remembers what it would have done."""

    def __init__(self, **settings: Any) -> None:
        spec = WorkerSpec(settings=Settings(**settings), registry=_registry(), concurrency=2, processes=1)
        super().__init__(spec)
        self.told_keeper: list[object] = []
        self.child = self._children[0]

    def _tell(self, message: object) -> None:
        self.told_keeper.append(message)

    def live(self, seconds: float) -> None:
        """As if the runner had started, run for so long, and not ended yet."""
        self.child.pid = 4711
        self.child.started = time.monotonic() - seconds
        self.child.board.announce(UUID(int=7), time.monotonic())

    def pause(self) -> float:
        return self.child.start_at - time.monotonic()


@pytest.fixture
def signals(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """(pid, signal) of every signal sent."""
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr("dhara.worker.supervisor.os.kill", lambda pid, number: sent.append((pid, number)))
    return sent


def test_a_runner_that_crashes_at_once_is_restarted_later_each_time() -> None:
    it = Watched()
    pauses = []
    for _ in range(12):
        it.live(0.1)
        it._ended(it.child, -signal.SIGSEGV)
        pauses.append(round(it.pause(), 1))
    assert pauses[0] < 0.1
    assert pauses == sorted(pauses)
    assert 4 < pauses[-1] <= 5
    assert it.told_keeper == [Died(UUID(int=7), "signal SIGSEGV")] * 12


def test_a_drained_runner_is_not_replaced(signals: list[tuple[int, int]]) -> None:
    """Nor one that is killed before its last task has ended."""
    for code in (0, -signal.SIGKILL):
        it = Watched()
        it.live(0.1)
        it.child.board.ask_drain()
        it._ended(it.child, code)
        assert it.child.retired and it._all_started()
        it._start = lambda child: pytest.fail("it is started again")  # type: ignore[method-assign]
        it._turn(())


def test_a_runner_that_lived_for_a_while_is_restarted_at_once() -> None:
    """However often it has been killed: every two seconds, for an hour."""
    it = Watched()
    for _ in range(50):
        it.live(1.5)
        it._ended(it.child, -signal.SIGKILL)
        assert it.pause() < 0.1


def test_a_runner_that_ends_in_order_is_replaced_without_a_pause() -> None:
    it = Watched()
    for _ in range(5):
        it.live(0.1)
        it.child.board.stopped()
        it._ended(it.child, 0)
        assert it.pause() <= 0
    assert it.told_keeper == []


@pytest.mark.parametrize("code", [3, 69, 78])
def test_what_can_never_run_is_not_tried_again(code: int, signals: list[tuple[int, int]]) -> None:
    """Schema, database, configuration: at its first start."""
    it = Watched()
    it.child.pid = 4711
    it._ended(it.child, code)
    assert it._exit == code
    assert it._told


def test_the_same_after_it_has_run_before_is_tried_again() -> None:
    it = Watched()
    it.live(10)
    it._ended(it.child, -signal.SIGKILL)
    it.child.board.reset()
    it.child.pid = 4712
    it._ended(it.child, 3)
    assert (it._exit, it._told) == (0, [])


def test_signals_are_passed_on(signals: list[tuple[int, int]]) -> None:
    it = Watched(shutdown_timeout=20.0)
    it.live(5)
    it._told = [signal.SIGINT]
    it._pass_on()
    assert signals == [(4711, signal.SIGTERM)]
    assert 19 < it._end_by - time.monotonic() <= 20
    it._told += [signal.SIGTERM, signal.SIGTERM]
    it._pass_on()
    it._pass_on()
    assert signals == [(4711, signal.SIGTERM), (4711, RELEASE)]
    assert it._exit == 128 + signal.SIGTERM
    assert it._end_by <= time.monotonic()


@pytest.mark.parametrize(
    ("late", "tick_age", "killed"),
    [(1, 60, False), (2, 60, True), (2, 0.2, False), (14, 0.2, False), (16, 0.2, True)],
)
def test_stragglers_are_killed_without_blame(
    late: float, tick_age: float, killed: bool, signals: list[tuple[int, int]]
) -> None:
    """One whose loop stands still has two seconds beyond its grace, any other fifteen."""
    it = Watched()
    it.live(100)
    it.child.board.tick(time.monotonic() - tick_age, 1)
    it._end_by = time.monotonic() - late
    it._told = [signal.SIGTERM]
    it._kill_stragglers()
    it._kill_stragglers()
    assert signals == ([(4711, signal.SIGKILL)] if killed else [])
    it._ended(it.child, -signal.SIGKILL)
    assert it.told_keeper == [Died(UUID(int=7), "signal SIGKILL", blame=not killed)]


def test_the_keeper_may_leave_as_soon_as_all_have_signed_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not only when their processes have ended: that would be one wait after the other. And it is not started again."""
    sent: list[object] = []
    monkeypatch.setattr("dhara.worker.supervisor.send", lambda keeper, message: sent.append(message))
    it = Watched()
    it._keeper = object()  # type: ignore[assignment]
    it.live(5)
    it._let_keeper_leave()
    it._told = [signal.SIGTERM]
    it._let_keeper_leave()
    assert sent == [], "it still runs"
    it.child.board.stopped()
    it._let_keeper_leave()
    it._let_keeper_leave()
    assert sent == [Leave()]
    it._start_keeper = lambda: pytest.fail("another keeper is started")  # type: ignore[method-assign]
    it._keeper_ended()


def test_without_a_database_there_is_one_clear_line() -> None:
    with pytest.raises(ConfigError, match="set DHARA_DATABASE_URL"):
        supervise(WorkerSpec(settings=Settings(), registry=_registry()))


def test_an_empty_registry_is_refused() -> None:
    spec = WorkerSpec(settings=Settings(database_url="postgresql://x/y"), registry=Registry())
    with pytest.raises(ConfigError, match="has no handlers"):
        supervise(spec)


MODULES = {
    "fine": ("from dhara import Registry\ntasks = Registry()\n@tasks.task('t')\ndef t(): ...\n", None),
    "missing": (None, "cannot import module '{m}'.*run this where it can be imported"),
    "needs": ("import not_installed_at_all", "it needs 'not_installed_at_all'"),
    "syntax": ("def", "importing module '{m}' failed: SyntaxError"),
    "raises": ("1 / 0", "importing module '{m}' failed: ZeroDivisionError"),
    "exits": ("import sys; sys.exit(3)", "importing module '{m}' failed: SystemExit"),
    "other": ("tasks = 5", "{m}:tasks is no dhara Registry but int"),
    "nothing": ("x = 1", "module '{m}' has no registry 'tasks'"),
    "empty": ("from dhara import Registry\ntasks = Registry()", "{m}:tasks has no handlers"),
    "twice": (
        "from dhara import Registry\ntasks = Registry()\n" + "@tasks.task('t')\ndef t(): ...\n" * 2,
        "module '{m}': task type 't' is registered twice",
    ),
}


@pytest.mark.parametrize("name", MODULES)
def test_modules_that_can_and_cannot_be_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    text, problem = MODULES[name]
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    module = f"{name}_{tmp_path.name.replace('-', '_')}"
    if text is not None:
        (tmp_path / f"{module}.py").write_text(text)
    if problem is None:
        assert load_registry(module).types == ["t"]
        return
    with pytest.raises(ConfigError) as found:
        load_registry(module)
    assert re.search(problem.replace("{m}", module), str(found.value)), str(found.value)
    assert "\n" not in str(found.value)

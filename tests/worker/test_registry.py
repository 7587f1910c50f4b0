"""What cannot work is refused when it is registered, not when it runs."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from dhara import Call, Context, Registry, RegistryError, RetryPolicy


class Callable_:  # noqa: N801
    """An object that can be called."""

    def __call__(self) -> None: ...


class Service:
    """Something with methods."""

    async def method(self, n: int) -> int:
        return n

    @staticmethod
    def static(n: int) -> int:
        return n


def _generator() -> Iterator[int]:
    yield 1


async def _async_generator() -> AsyncIterator[int]:
    yield 1


def _positional_only(a: int, /) -> None: ...


def _star(*args: int) -> None: ...


def _missing(a: object) -> None: ...


_missing.__annotations__["a"] = "Missing"  # as an import under TYPE_CHECKING leaves it


def _odd_context(ctx: int) -> None: ...


def _fine() -> None: ...


REFUSED: dict[str, tuple[Any, str]] = {
    "class": (Service, "must be a function"),
    "object": (Callable_(), "must be a function"),
    "partial": (functools.partial(_fine), "must be a function"),
    "number": (4, "must be a function"),
    "lambda": (lambda: None, "lambda"),
    "generator": (_generator, "generator"),
    "async generator": (_async_generator, "generator"),
    "positional-only": (_positional_only, "'a' must be passable by keyword"),
    "star": (_star, "'args' must be passable by keyword"),
    "missing annotation": (_missing, "cannot be resolved: name 'Missing' is not defined"),
    "odd context": (_odd_context, "ctx is the dhara Context"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused_functions(what: str) -> None:
    function, words = REFUSED[what]
    with pytest.raises(RegistryError) as found:
        Registry().task("mail.send")(function)
    assert words in str(found.value)
    assert str(found.value).startswith("mail.send: ")


@pytest.mark.parametrize("name", ["", "x" * 101, "Ä", "a b", "../x", "a\n", "A", "-a", None, 5])
def test_refused_names(name: Any) -> None:
    with pytest.raises(RegistryError, match="is not a name: 1 to 100 characters"):
        Registry().task(name)
    with pytest.raises(RegistryError, match="queue .* is not a name"):
        Registry().task("t", queue=name)


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf"), 8 * 86_400])
def test_refused_timeouts(timeout: float) -> None:
    with pytest.raises(RegistryError, match="t: timeout must be 0.001 to 604800 seconds"):
        Registry().task("t", timeout=timeout)


@pytest.mark.parametrize("retries", [-1, 21])
def test_refused_retries(retries: int) -> None:
    with pytest.raises(RegistryError, match="max_retries must be 0 to 20"):
        Registry().task("t", retry=RetryPolicy(max_retries=retries))


def test_twice() -> None:
    tasks = Registry()
    tasks.task("t")(_fine)
    with pytest.raises(RegistryError, match="'t' is registered twice"):
        tasks.task("t")(_fine)
    tasks.task("other")(_fine)
    assert tasks.types == ["other", "t"]
    assert len(tasks) == 2


def test_unknown_type() -> None:
    assert Registry().get("t") is None


def test_methods_and_wrapped_functions_are_fine() -> None:
    tasks = Registry()
    tasks.task("bound")(Service().method)
    tasks.task("static")(Service.static)

    def decorated(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        async def inner(*args: Any, **kwargs: Any) -> Any:
            return await function(*args, **kwargs)

        return inner

    async def handler(to: str, *, ctx: Context) -> None: ...

    wrapped = tasks.task("wrapped")(decorated(handler))
    assert wrapped.wants_context
    assert wrapped.s(to="x").payload == {"to": "x"}


async def test_a_handler_is_still_a_function() -> None:
    """Tests and other code call it as if it were not registered."""
    tasks = Registry()

    @tasks.task("add", queue="sums", priority=7, retry=RetryPolicy(max_retries=2))
    async def add(a: int, b: int = 1) -> int:
        """Add."""
        return a + b

    assert await add(2, b=5) == 7
    assert (add.__name__, add.__doc__) == ("add", "Add.")
    expected = {"queue": "sums", "priority": 7, "max_retries": 2}
    assert add.s(2) == Call(type="add", payload={"a": 2}, defaults=expected)
    with pytest.raises(TypeError):
        add.s(1, 2, 3)
    with pytest.raises(TypeError):
        add.s(b=1)


def test_calls_leave_the_context_out() -> None:
    tasks = Registry()

    @tasks.task("t")
    async def handler(ctx: Context, a: int, **rest: int) -> None: ...

    assert handler.s(1, x=2).payload == {"a": 1, "x": 2}
    with pytest.raises(TypeError):
        handler.s(1, 2)


def test_schedules_are_declared_above_their_handlers() -> None:
    tasks = Registry()

    @tasks.every(60, name="often", payload={"n": 1}, overlap="skip")
    @tasks.cron("0 3 * * *", tz="Europe/Berlin", queue="night")
    @tasks.task("report", queue="reports", retry=RetryPolicy(max_retries=2))
    def report(n: int = 0) -> None: ...

    nightly, often = tasks.schedules
    assert (nightly.name, nightly.type, nightly.cron, nightly.timezone, nightly.queue, nightly.max_retries) == (
        "report", "report", "0 3 * * *", "Europe/Berlin", "night", 2,
    )  # fmt: skip
    assert (often.name, often.every, often.payload, often.queue, often.overlap) == (
        "often", 60, '{"n":1}', "reports", "skip",
    )  # fmt: skip
    wrongs: list[Any] = [tasks.cron("no"), tasks.cron("@daily", tz="Mars"), tasks.every(0)]
    for wrong in wrongs:
        with pytest.raises(RegistryError, match="the schedule of report cannot be"):
            wrong(report)
    with pytest.raises(RegistryError, match="declared twice"):
        tasks.cron("@daily")(report)
    with pytest.raises(RegistryError, match=r"above @tasks\.task"):
        tasks.cron("@daily")(print)  # type: ignore[arg-type]

"""What the OpenAPI document allows and forbids, against a real server, by schemathesis; also in sequences, along its links.

    python -m fuzz.api [--cases 20000] [--seed 0]

Half the cases are single calls, valid and invalid, of every operation; the other half are steps of a state machine that
feeds answers of one call into the next. Every check of schemathesis holds but one: that whatever fits the schema is
accepted, because JSON Schema cannot say that run_at excludes delay, that texts with U+0000 cannot be stored, or that a
time must not be past. In its place `accepted` holds: what fits is refused only for such a reason.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import time
from collections import Counter
from contextlib import suppress
from typing import Any

import schemathesis
from hypothesis import HealthCheck, Phase, settings
from hypothesis import seed as seeded
from hypothesis.errors import Flaky
from schemathesis.specs.openapi.checks import positive_data_acceptance

from dhara.api.openapi import document
from dhara.api.routes import TABLE
from fuzz import accepted
from fuzz.server import KEY, served

COUNT: Counter[str] = Counter()
HEADERS = {"authorization": f"Bearer {KEY}"}
CHECKS = [HealthCheck.filter_too_much, HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]


def schema() -> Any:
    """The document, each operation under one path only; aliases answer by the same code."""
    whole = document([route for route in TABLE if "text/event-stream" not in route.answers.values()], "fuzz")
    return schemathesis.openapi.from_dict(
        whole | {"paths": {path: ops for path, ops in whole["paths"].items() if path.startswith("/api/v1")}}
    )


def call(case: Any, url: str) -> Any:
    """One call, checked."""
    _without_waiting(case)
    COUNT[case.operation.label] += 1
    response = case.call_and_validate(base_url=url, headers=HEADERS, excluded_checks=[positive_data_acceptance])
    accepted.check(case, response)
    return response


def _without_waiting(case: Any) -> None:
    if case.operation.path.endswith("/wait"):
        case.query = {**(case.query or {}), "timeout": 0}


def singles(url: str, cases: int, seed: int) -> list[str]:
    """Single calls of every operation; answers what was found."""
    found = []
    loaded = schema()
    operations = [result.ok() for result in loaded.get_all_operations()]
    each = max(1, cases // len(operations))
    for operation in operations:
        strategy = operation.as_strategy() | operation.as_strategy(generation_mode=schemathesis.GenerationMode.NEGATIVE)

        @seeded(seed)
        @settings(
            max_examples=each, deadline=None, database=None, suppress_health_check=CHECKS, phases=[Phase.generate]
        )
        @_given(strategy)
        def test(case: Any) -> None:
            call(case, url)

        try:
            test()
        except (Exception, BaseExceptionGroup) as error:
            found.append(f"{operation.label}: {_said(error)}")
    return found


def _said(error: BaseException) -> str:
    inner = error.exceptions if isinstance(error, BaseExceptionGroup) else ()
    return "\n".join([str(error), *map(_said, inner)])


def _given(strategy: Any) -> Any:
    from hypothesis import given

    return given(case=strategy)


def sequences(url: str, cases: int, seed: int) -> list[str]:
    """Calls that feed on one another's answers, until there were so many; answers what was found."""
    found: dict[str, str] = {}

    class Machine(schema().as_state_machine()):  # type: ignore[misc]
        def get_call_kwargs(self, case: Any) -> dict[str, Any]:
            _without_waiting(case)
            COUNT[case.operation.label] += 1
            return {"base_url": url, "headers": HEADERS}

        def validate_response(self, response: Any, case: Any, **options: Any) -> None:
            try:
                case.validate_response(response, headers=HEADERS, excluded_checks=[positive_data_acceptance])
                accepted.check(case, response)
            except (Exception, BaseExceptionGroup) as error:
                # Kept, not raised: what the server holds has changed, so no run could be repeated to shrink it.
                found.setdefault(case.operation.label, f"sequence: {case.operation.label}: {_said(error)}")

    chosen = settings(
        max_examples=20,
        stateful_step_count=20,
        deadline=None,
        database=None,
        suppress_health_check=CHECKS,
        phases=[Phase.generate],
    )
    random.seed(seed)
    until = sum(COUNT.values()) + cases
    while sum(COUNT.values()) < until:
        # For the same reason Hypothesis finds at times that the same choices led elsewhere.
        with suppress(Flaky):
            Machine.run(settings=chosen)
    return list(found.values())


async def main(cases: int, seed: int) -> int:
    started = time.monotonic()
    async with served(api_keys=(KEY,)) as (port, _, _):
        url = f"http://127.0.0.1:{port}"
        found = await asyncio.to_thread(singles, url, cases // 2, seed)
        found += await asyncio.to_thread(sequences, url, cases - sum(COUNT.values()), seed)
    print(f"{sum(COUNT.values()):,} calls in {time.monotonic() - started:.0f} s; findings: {len(found)}")
    for name, n in sorted(COUNT.items()):
        print(f"  {n:6,}  {name}")
    for one in found:
        print(one)
    return 1 if found else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    sys.exit(asyncio.run(main(arguments.cases, arguments.seed)))

"""The document: valid, complete, and true. Schemathesis asks the application whatever the document allows."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from queue import Queue
from threading import Thread
from typing import Any

import httpx
import msgspec
import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from openapi_spec_validator import validate
from schemathesis.specs.openapi.checks import positive_data_acceptance

from dhara.api import shapes
from dhara.api.asgi import create_app
from dhara.api.openapi import document
from dhara.api.problems import PROBLEMS, Problem
from dhara.api.routes import TABLE
from dhara.api.server import serve
from dhara.domain.validate import CREATE_FIELDS
from dhara.settings import Settings
from dhara.store.pool import DatabaseSettings, Pool
from fuzz import accepted

from .conftest import KEY, post

DOCUMENT = document(TABLE, "1.2.3")


def test_it_is_valid_openapi_3_1() -> None:
    validate(json.loads(msgspec.json.encode(DOCUMENT)))


def test_every_route_and_alias_is_in_it() -> None:
    told = {(method.upper(), path) for path, operations in DOCUMENT["paths"].items() for method in operations}
    assert told == {(route.method, path) for route in TABLE for path in route.paths}


def test_operation_ids_are_unique() -> None:
    ids = [one["operationId"] for operations in DOCUMENT["paths"].values() for one in operations.values()]
    assert len(ids) == len(set(ids))


def test_every_code_has_a_status_and_is_used() -> None:
    used = {code for route in TABLE for code in route.problems}
    elsewhere = {"method_not_allowed", "bad_request", "request_timeout"}
    assert set(PROBLEMS) == used | elsewhere | ({"not_found"} & used)


def test_what_can_be_sent_is_what_is_validated() -> None:
    assert set(shapes.NewTaskIn.__struct_fields__) == set(CREATE_FIELDS)


def test_nothing_is_ever_null() -> None:
    """But where null is a wish of its own."""
    schemas = dict(DOCUMENT["components"]["schemas"])
    assert '"null"' in json.dumps(schemas.pop("QueueChangeIn"))
    assert '"null"' not in json.dumps(schemas)


async def test_answers_have_the_shapes_they_are_said_to_have(client: httpx.AsyncClient) -> None:
    made = await post(client, b'{"type":"echo","tags":["a"]}')
    msgspec.json.decode(made.content, type=shapes.TaskOut)
    pages = {
        "/tasks": shapes.TaskList,
        "/queues": shapes.QueueList,
        "/workers": shapes.WorkerList,
        "/stats": shapes.StatsOut,
        "/readyz": shapes.HealthOut,
        f"/tasks/{made.json()['id']}/logs": shapes.LogList,
        f"/tasks/{made.json()['id']}/attempts": shapes.AttemptList,
    }
    for path, shape in pages.items():
        msgspec.json.decode((await client.get("/api/v1" + path)).content, type=shape)
    msgspec.json.decode((await client.get("/nothing")).content, type=Problem)


# Each operation under one path only: aliases answer by the same code.
SCHEMA = schemathesis.openapi.from_dict(
    # But the event stream, which has no end.
    DOCUMENT
    | {
        "paths": {
            path: ops
            for path, ops in DOCUMENT["paths"].items()
            if path.startswith("/api/v1") and not path.endswith("/events")
        }
    }
)


@pytest.fixture(scope="module")
def live(shared_dsn: str) -> Iterator[str]:
    """A real server in a thread; answers its address."""
    addresses: Queue[tuple[str, asyncio.AbstractEventLoop, asyncio.Event]] = Queue()

    async def run() -> None:
        stop, loop = asyncio.Event(), asyncio.get_running_loop()

        def started(host: str, port: int) -> None:
            addresses.put((f"http://{host}:{port}", loop, stop))

        async with Pool(DatabaseSettings(dsn=shared_dsn)) as pool:
            # With a key from the beginning: the first that is made would close the server to those without.
            app = create_app(pool=pool, settings=Settings(api_keys=(KEY,)))
            await serve(app, host="127.0.0.1", port=0, stop=stop, on_started=started)

    thread = Thread(target=asyncio.run, args=(run(),))
    thread.start()
    url, loop, stop = addresses.get(timeout=20)
    yield url
    loop.call_soon_threadsafe(stop.set)
    thread.join(20)


@SCHEMA.parametrize()
@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
def test_schemathesis_finds_no_lie(case: Any, live: str) -> None:
    if "timeout" in (case.query or {}):
        case.query["timeout"] = 0
    # Not the check that whatever fits the schema is accepted: JSON Schema cannot say that run_at excludes delay. In its
    # place a check that such things are the only reasons.
    headers = {"authorization": f"Bearer {KEY}"}
    response = case.call_and_validate(base_url=live, headers=headers, excluded_checks=[positive_data_acceptance])
    accepted.check(case, response)

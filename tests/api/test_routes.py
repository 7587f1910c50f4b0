"""Every row of the table answers as it says: `HAPPY` and `UNHAPPY` hold a test for each, and a test that none is missing."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from itertools import pairwise
from typing import Any
from uuid import uuid4

import httpx
import pytest

from dhara.api.routes import BASE, TABLE
from dhara.domain.access import ADMIN, OPERATE
from dhara.domain.lifecycle import State
from dhara.store.audit import Audit
from dhara.store.pool import Pool
from tests import factories

from .conftest import JSON, NOBODY, Wakes, post, problem

Check = Callable[[httpx.AsyncClient, Pool], Awaitable[None]]
HAPPY: dict[tuple[str, str], list[Check]] = {}
UNHAPPY: dict[tuple[str, str], list[Check]] = {}


def happy(method: str, path: str) -> Callable[[Check], Check]:
    def register(check: Check) -> Check:
        HAPPY.setdefault((method, path), []).append(check)
        return check

    return register


def unhappy(method: str, path: str) -> Callable[[Check], Check]:
    def register(check: Check) -> Check:
        UNHAPPY.setdefault((method, path), []).append(check)
        return check

    return register


async def created(client: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    answer = await post(client, json.dumps({"type": "echo"} | fields))
    assert answer.status_code == 201, answer.text
    task: dict[str, Any] = answer.json()
    return task


# tasks


@happy("POST", "/tasks")
async def all_fields_come_back(client: httpx.AsyncClient, pool: Pool) -> None:
    fields = {
        "type": "email.send",
        "payload": {"to": "a@b.c"},
        "queue": "mail",
        "priority": 7,
        "max_retries": 2,
        "delay": 3600,
        "idempotency_key": "k-1",
        "timeout": 12.5,
        "expires_at": "2100-01-01T00:00:00Z",
        "tags": ["a", "b"],
        "concurrency_key": "c",
        "traceparent": "00-" + "a" * 32 + "-" + "b" * 16 + "-01",
    }
    answer = await post(client, json.dumps(fields))
    assert answer.status_code == 201, answer.text
    task = answer.json()
    assert {name: task[name] for name in fields if name != "delay"} == {n: v for n, v in fields.items() if n != "delay"}
    assert task["status"] == "PENDING"
    assert answer.headers["location"] == f"/api/v1/tasks/{task['id']}"
    assert (await client.get(answer.headers["location"])).json() == task


@happy("POST", "/tasks")
async def defaults_are_as_the_contract_says(client: httpx.AsyncClient, pool: Pool) -> None:
    task = await created(client)
    assert (task["queue"], task["priority"], task["max_retries"], task["payload"]) == ("default", 0, 5, {})
    absent = {"locked_by", "idempotency_key", "started_at", "result", "last_error", "tags", "timeout", "lease"}
    assert not absent & set(task)
    assert None not in task.values()


@happy("POST", "/tasks")
async def a_replay_is_the_same_task(client: httpx.AsyncClient, pool: Pool) -> None:
    first = await created(client, idempotency_key="k", payload={"a": 1, "b": [1.0]})
    again = await post(client, b'{"type":"echo","payload":{ "b":[1.00], "a":1 },"idempotency_key":"k"}')
    assert (again.status_code, again.json()) == (200, first)
    assert again.headers["idempotency-replayed"] == "true"


@happy("POST", "/tasks")
async def the_key_may_come_as_a_header(client: httpx.AsyncClient, pool: Pool) -> None:
    headers = JSON | {"idempotency-key": "h-1"}
    first = await client.post("/api/v1/tasks", content=b'{"type":"echo"}', headers=headers)
    again = await client.post("/api/v1/tasks", content=b'{"type":"echo","idempotency_key":"h-1"}', headers=headers)
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json()["id"] == again.json()["id"]
    assert first.json()["idempotency_key"] == "h-1"


@happy("POST", "/tasks")
async def a_key_is_unique_per_type(client: httpx.AsyncClient, pool: Pool) -> None:
    one, other = await created(client, idempotency_key="k"), await created(client, type="x", idempotency_key="k")
    assert one["id"] != other["id"]


@unhappy("POST", "/tasks")
async def same_key_other_payload(client: httpx.AsyncClient, pool: Pool) -> None:
    first = await created(client, idempotency_key="k", payload=1)
    found = problem(
        await post(client, b'{"type":"echo","payload":2,"idempotency_key":"k"}'), 409, "idempotency_conflict"
    )
    assert found["task_id"] == first["id"]
    assert found["errors"][0]["field"] == "idempotency_key"


@unhappy("POST", "/tasks")
async def header_and_field_differ(client: httpx.AsyncClient, pool: Pool) -> None:
    headers = JSON | {"idempotency-key": "a"}
    answer = await client.post("/api/v1/tasks", content=b'{"type":"echo","idempotency_key":"b"}', headers=headers)
    problem(answer, 422, "invalid_task")


@happy("POST", "/tasks/batch")
async def a_batch_in_order(client: httpx.AsyncClient, pool: Pool) -> None:
    tasks = [{"type": f"t{i}", "payload": i} for i in range(1_000)]
    answer = await post(client, json.dumps({"tasks": tasks}), "/api/v1/tasks/batch")
    assert answer.status_code == 201, answer.text
    made = answer.json()
    assert [task["payload"] for task in made] == list(range(1_000))
    assert all(task["created"] for task in made)
    assert (await client.get("/api/v1/tasks")).json()["total"] == 1_000


@happy("POST", "/tasks/batch")
async def a_batch_as_a_list_with_a_replay(client: httpx.AsyncClient, pool: Pool) -> None:
    old = await created(client, idempotency_key="b")
    batch = [{"type": "echo", "idempotency_key": key} for key in ("c", "b", "a")]
    answer = await post(client, json.dumps(batch), "/api/v1/tasks/batch")
    assert answer.status_code == 201, answer.text
    assert [task["created"] for task in answer.json()] == [True, False, True]
    assert [task["idempotency_key"] for task in answer.json()] == ["c", "b", "a"]
    assert answer.json()[1]["id"] == old["id"]


@unhappy("POST", "/tasks/batch")
async def a_conflict_takes_all_back(client: httpx.AsyncClient, pool: Pool) -> None:
    await created(client, idempotency_key="b", payload="old")
    batch = [{"type": "echo", "idempotency_key": key} for key in ("c", "b", "a")]
    found = problem(await post(client, json.dumps(batch), "/api/v1/tasks/batch"), 409, "idempotency_conflict")
    assert found["index"] == 1
    assert found["errors"][0]["field"] == "[1].idempotency_key"
    assert await pool.fetchval("SELECT count(*) FROM dhara.tasks") == 1


@happy("GET", "/tasks")
async def pages_by_cursor_and_by_offset_agree(client: httpx.AsyncClient, pool: Pool) -> None:
    made = [(await created(client, payload=i))["id"] for i in range(7)]
    seen, cursor = [], None
    while True:
        params = {"limit": "3"} | ({"cursor": cursor} if cursor else {})
        page = (await client.get("/api/v1/tasks", params=params)).json()
        assert (page["total"], page["total_is_estimate"], page["limit"]) == (7, False, 3)
        assert "payload" not in page["tasks"][0]
        seen += [task["id"] for task in page["tasks"]]
        cursor = page.get("next_cursor")
        if cursor is None:
            break
    assert seen == made[::-1]
    second = (await client.get("/api/v1/tasks", params={"limit": 3, "offset": 3})).json()
    assert [task["id"] for task in second["tasks"]] == seen[3:6]


@happy("GET", "/tasks")
async def every_filter_filters(client: httpx.AsyncClient, pool: Pool) -> None:
    worker = await factories.make_worker(pool)
    rows = {
        "plain": await factories.make_task(pool, type="plain", queue="q1", tags=("red",), idempotency_key="find-me"),
        "retrying": await factories.make_task(pool, failures=1, type="again"),
        "delayed": await factories.make_task(pool, due_in=3_600),
        "running": await factories.make_task(pool, State.RUNNING, worker=worker),
        "done": await factories.make_task(pool, State.COMPLETED, age=7_200),
        "dead": await factories.make_task(pool, State.DEAD),
    }
    wanted = {
        "status=RUNNING": {"running"},
        "status=RUNNING&status=DEAD": {"running", "dead"},
        "type=plain": {"plain"},
        "queue=q1": {"plain"},
        "retrying=true": {"retrying"},
        "due=delayed&type=t": {"delayed"},
        "due=ready&queue=q1": {"plain"},
        f"worker={worker}": {"running"},
        "tag=red": {"plain"},
        f"created_before={rows['done'].updated_at.isoformat().replace('+00:00', 'Z')}": {"done"},
        "created_after=2020-01-01T00:00:00Z&status=DEAD": {"dead"},
        "q=find": {"plain"},
        f"q={rows['dead'].id}": {"dead"},
        "status=CANCELED": set(),
    }
    names = {str(task.id): name for name, task in rows.items()}
    for query, expected in wanted.items():
        answer = await client.get(f"/api/v1/tasks?{query}")
        assert answer.status_code == 200, (query, answer.text)
        assert {names[task["id"]] for task in answer.json()["tasks"]} == expected, query


@unhappy("GET", "/tasks")
async def a_foreign_cursor_is_refused(client: httpx.AsyncClient, pool: Pool) -> None:
    for _ in range(3):
        await created(client)
    cursor = (await client.get("/api/v1/tasks?limit=1")).json()["next_cursor"]
    assert (await client.get("/api/v1/tasks", params={"limit": 1, "cursor": cursor})).status_code == 200
    tampered = cursor[:5] + ("A" if cursor[5] != "A" else "B") + cursor[6:]
    for params in ({"cursor": tampered}, {"cursor": cursor, "type": "echo"}, {"cursor": cursor, "offset": "1"}):
        found = problem(await client.get("/api/v1/tasks", params=params), 422, "invalid_query")
        assert found["errors"][0]["field"] == "cursor"


@happy("GET", "/tasks/{id}")
async def a_completed_task_has_its_result(client: httpx.AsyncClient, pool: Pool) -> None:
    task = await factories.make_task(pool, State.COMPLETED, result='{"n": 1.0}')
    answer = await client.get(f"/api/v1/tasks/{task.id}")
    assert answer.status_code == 200
    assert b'"result":{"n": 1.0}' in answer.content
    assert "locked_by" not in answer.json()


@happy("GET", "/tasks/{id}")
async def a_running_task_names_its_worker(client: httpx.AsyncClient, pool: Pool) -> None:
    worker = await factories.make_worker(pool)
    task = await factories.make_task(pool, State.RUNNING, worker=worker)
    assert (await client.get(f"/api/v1/tasks/{task.id}")).json()["locked_by"] == str(worker)


@happy("DELETE", "/tasks/{id}")
async def cancel_by_state(client: httpx.AsyncClient, pool: Pool) -> None:
    pending = await factories.make_task(pool)
    first = await client.delete(f"/api/v1/tasks/{pending.id}")
    again = await client.delete(f"/api/v1/tasks/{pending.id}")
    assert (first.status_code, first.json()["status"]) == (200, "CANCELED")
    assert (again.status_code, again.json()) == (200, first.json())
    running = await factories.make_task(pool, State.RUNNING)
    asked = await client.delete(f"/api/v1/tasks/{running.id}")
    assert (asked.status_code, asked.json()["status"]) == (202, "RUNNING")
    assert "cancel_requested_at" in asked.json()
    assert (await client.delete(f"/api/v1/tasks/{running.id}")).json() == asked.json()


@unhappy("DELETE", "/tasks/{id}")
async def final_tasks_stay(client: httpx.AsyncClient, pool: Pool) -> None:
    for state in (State.COMPLETED, State.DEAD):
        task = await factories.make_task(pool, state)
        found = problem(await client.delete(f"/api/v1/tasks/{task.id}"), 409, "wrong_state")
        assert found["state"] == state


@happy("POST", "/tasks/{id}/retry")
async def a_dead_task_is_revived(client: httpx.AsyncClient, pool: Pool) -> None:
    task = await factories.make_task(pool, State.DEAD, payload='{"a":1.0}')
    answer = await client.post(f"/api/v1/tasks/{task.id}/retry")
    assert answer.status_code == 200
    assert (answer.json()["status"], answer.json()["generation"]) == ("PENDING", 2)
    assert b'"payload":{"a":1.0}' in answer.content


@happy("POST", "/tasks/{id}/retry")
async def a_revived_task_can_be_changed(client: httpx.AsyncClient, pool: Pool) -> None:
    task = await factories.make_task(pool, State.DEAD, queue="old", priority=1)
    body = b'{"queue":"new","priority":9,"payload":{"b":-0},"run_at":"%s"}' % b"2026-11-30T00:00:00Z"
    later = (await pool.fetchval("SELECT to_char(now() + interval '1 day', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"')")).encode()
    answer = await post(client, body.replace(b"2026-11-30T00:00:00Z", later), f"/api/v1/tasks/{task.id}/retry")
    assert answer.status_code == 200, answer.text
    shown = answer.json()
    assert (shown["queue"], shown["priority"]) == ("new", 9)
    assert b'"payload":{"b":-0}' in answer.content
    assert shown["run_at"][:10] == later.decode()[:10]


@unhappy("POST", "/tasks/{id}/retry")
async def only_dead_tasks_are_revived(client: httpx.AsyncClient, pool: Pool) -> None:
    for state in (State.PENDING, State.RUNNING, State.COMPLETED, State.CANCELED):
        task = await factories.make_task(pool, state, cancel_requested=state is State.CANCELED)
        found = problem(await client.post(f"/api/v1/tasks/{task.id}/retry"), 409, "wrong_state")
        assert found["state"] == state


@unhappy("POST", "/tasks/{id}/retry")
async def revived_twice_at_once_has_one_winner(client: httpx.AsyncClient, pool: Pool) -> None:
    task = await factories.make_task(pool, State.DEAD)
    path = f"/api/v1/tasks/{task.id}/retry"
    answers = await asyncio.gather(*(client.post(path) for _ in range(5)))
    assert sorted(answer.status_code for answer in answers) == [200, 409, 409, 409, 409]


@happy("GET", "/tasks/{id}/logs")
async def the_history_is_a_path(client: httpx.AsyncClient, pool: Pool) -> None:
    task = await factories.make_task(pool, State.COMPLETED, failures=1)
    logs = (await client.get(f"/api/v1/tasks/{task.id}/logs")).json()["logs"]
    assert [entry["event"] for entry in logs] == ["ENQUEUED", "CLAIMED", "RETRIED", "CLAIMED", "COMPLETED"]
    assert all(one["to_state"] == later["from_state"] for one, later in pairwise(logs))
    assert logs[-1]["to_state"] == "COMPLETED"


@happy("GET", "/tasks/{id}/attempts")
async def one_row_an_attempt(client: httpx.AsyncClient, pool: Pool) -> None:
    task = await factories.make_task(pool, State.RUNNING, failures=2)
    attempts = (await client.get(f"/api/v1/tasks/{task.id}/attempts")).json()["attempts"]
    assert [(one["attempt"], one.get("outcome")) for one in attempts] == [(1, "RETRIED"), (2, "RETRIED"), (3, None)]
    assert "ended_at" not in attempts[2]


@happy("GET", "/tasks/{id}/explain")
async def why_it_is_not_running(client: httpx.AsyncClient, pool: Pool) -> None:
    task = await created(client, delay=3_600)
    await client.post("/api/v1/queues/default/pause")
    found = (await client.get(f"/api/v1/tasks/{task['id']}/explain")).json()
    assert (found["id"], found["status"], found["code"]) == (task["id"], "PENDING", "queue_paused")
    assert found["facts"]["queue"] == "default"
    assert [reason["code"] for reason in found["also"]] == ["no_worker", "delayed"]
    assert found["also"][1]["facts"] == {"run_at": task["run_at"]}


@happy("GET", "/tasks/{id}/wait")
async def a_final_task_answers_at_once(client: httpx.AsyncClient, pool: Pool) -> None:
    task = await factories.make_task(pool, State.COMPLETED)
    answer = await client.get(f"/api/v1/tasks/{task.id}/wait")
    assert (answer.status_code, answer.json()["status"]) == (200, "COMPLETED")


@happy("GET", "/tasks/{id}/wait")
async def an_open_task_is_a_202_in_the_end(client: httpx.AsyncClient, pool: Pool) -> None:
    task = await factories.make_task(pool)
    answer = await client.get(f"/api/v1/tasks/{task.id}/wait?timeout=0.01")
    assert (answer.status_code, answer.json()["status"]) == (202, "PENDING")


@unhappy("GET", "/tasks/{id}/wait")
async def a_wait_has_bounds(client: httpx.AsyncClient, pool: Pool) -> None:
    task = await factories.make_task(pool)
    for timeout in ("-1", "121", "x", "1e9", "", "nan"):
        found = problem(await client.get(f"/api/v1/tasks/{task.id}/wait?timeout={timeout}"), 422, "invalid_query")
        assert found["errors"][0]["field"] == "timeout"


@happy("GET", "/dead-letters")
async def only_the_dead_are_listed(client: httpx.AsyncClient, pool: Pool) -> None:
    await factories.make_task(pool)
    dead = [await factories.make_task(pool, State.DEAD, queue=queue) for queue in ("a", "b")]
    page = (await client.get("/api/v1/dead-letters?limit=1")).json()
    assert (page["total"], page["tasks"][0]["id"]) == (2, str(dead[1].id))
    rest = (await client.get("/api/v1/dead-letters", params={"limit": 1, "cursor": page["next_cursor"]})).json()
    assert rest["tasks"][0]["id"] == str(dead[0].id)
    assert (await client.get("/api/v1/dead-letters?queue=b")).json()["total"] == 1


@unhappy("GET", "/dead-letters")
async def the_dead_have_no_other_status(client: httpx.AsyncClient, pool: Pool) -> None:
    problem(await client.get("/api/v1/dead-letters?status=PENDING"), 422, "invalid_query")


# queues, workers, figures


@happy("GET", "/dead-letters/groups")
@happy("POST", "/dead-letters/groups/{fingerprint}/mute")
@happy("POST", "/dead-letters/groups/{fingerprint}/unmute")
async def failures_by_group(client: httpx.AsyncClient, pool: Pool) -> None:
    for age in (7_300, 10):
        await factories.make_task(pool, State.DEAD, fingerprint="b:1", age=age)
    last = await factories.make_task(pool, State.DEAD, fingerprint="a", age=100_000)
    found = (await client.get("/api/v1/dead-letters/groups")).json()["groups"]
    assert [(g["fingerprint"], g["count"], g["count_is_estimate"], g["muted"]) for g in found] == [
        ("b:1", 2, False, False),
        ("a", 1, False, False),
    ]
    assert found[0]["trend"] == [1, 0, 1, *[0] * 21]
    assert found[1]["trend"] == [0] * 24
    assert found[0]["first_at"] < found[0]["last_at"]
    assert (found[1]["sample"], found[1]["reason"]) == (str(last.id), "exhausted")
    muted = await client.post("/api/v1/dead-letters/groups/b:1/mute")
    assert (muted.status_code, muted.json()["muted"], muted.json()["muted_by"]) == (200, True, "api")
    muted = await client.get("/api/v1/dead-letters/groups?muted=true&type=t")
    assert [g["fingerprint"] for g in muted.json()["groups"]] == ["b:1"]
    assert (await client.post("/api/v1/dead-letters/groups/b:1/unmute")).json()["muted"] is False
    assert (await client.get("/api/v1/dead-letters/groups?type=other")).json() == {"groups": []}
    listed = (await client.get("/api/v1/dead-letters?fingerprint=a")).json()["tasks"]
    assert [task["id"] for task in listed] == [str(last.id)]
    actions = (await client.get("/api/v1/audit?action=failures")).json()["actions"]
    assert [one["action"] for one in actions] == ["failures.unmute", "failures.mute"]


@unhappy("POST", "/dead-letters/groups/{fingerprint}/mute")
@unhappy("POST", "/dead-letters/groups/{fingerprint}/unmute")
async def no_such_group(client: httpx.AsyncClient, pool: Pool) -> None:
    for verb in ("mute", "unmute"):
        problem(await client.post(f"/api/v1/dead-letters/groups/nothing/{verb}"), 404, "not_found")


@happy("POST", "/dead-letters/retry")
@happy("POST", "/dead-letters/purge")
@happy("POST", "/tasks/cancel")
@happy("GET", "/operations")
@happy("GET", "/operations/{id}")
@happy("POST", "/operations/{id}/stop")
async def many_at_once(client: httpx.AsyncClient, pool: Pool) -> None:
    dead = [await factories.make_task(pool, State.DEAD, type="a") for _ in range(3)]
    await factories.make_task(pool, State.DEAD, type="b")
    preview = (await client.post("/api/v1/dead-letters/retry?type=a&dry_run=true")).json()
    assert (preview["count"], len(preview["sample"]), "operation" in preview) == (3, 3, False)
    assert (await client.get("/api/v1/dead-letters")).json()["total"] == 4
    answer = await client.post(f"/api/v1/dead-letters/retry?id={dead[0].id}&id={dead[1].id}")
    done = answer.json()["operation"]
    assert (answer.status_code, done["state"], done["done"]) == (200, "done", 2)
    assert done["filter"] == {"status": ["DEAD"], "ids": [str(dead[0].id), str(dead[1].id)]}
    purged = (await client.post("/api/v1/dead-letters/purge?all=true")).json()["operation"]
    assert (purged["kind"], purged["done"]) == ("purge", 2)
    canceled = (await client.post("/api/v1/tasks/cancel?type=a&status=PENDING")).json()["operation"]
    assert canceled["done"] == 2
    canary = await client.post("/api/v1/dead-letters/retry?all=true&canary=5&watch=1&max_failed=0.5")
    assert canary.json()["operation"]["canary"] == {
        "first": 5,
        "factor": 4.0,
        "most": 500,
        "max_failed": 0.5,
        "watch": 1.0,
    }
    listed = (await client.get("/api/v1/operations")).json()["operations"]
    assert [one["kind"] for one in listed] == ["retry", "cancel", "purge", "retry"]
    assert (await client.get(f"/api/v1/operations/{done['id']}")).json() == done
    assert (await client.post(f"/api/v1/operations/{done['id']}/stop")).json()["state"] == "done"


@unhappy("POST", "/dead-letters/retry")
@unhappy("POST", "/dead-letters/purge")
@unhappy("POST", "/tasks/cancel")
async def all_must_be_said(client: httpx.AsyncClient, pool: Pool) -> None:
    for path in ("dead-letters/retry", "dead-letters/purge", "tasks/cancel"):
        found = problem(await client.post(f"/api/v1/{path}?dry_run=true"), 422, "invalid_query")
        assert found["errors"][0]["field"] == "all"
    found = problem(await client.post("/api/v1/dead-letters/retry?all=true&watch=5"), 422, "invalid_query")
    assert found["errors"][0]["field"] == "watch"


@unhappy("GET", "/operations/{id}")
@unhappy("POST", "/operations/{id}/stop")
async def no_such_operation(client: httpx.AsyncClient, pool: Pool) -> None:
    problem(await client.get(f"/api/v1/operations/{NOBODY}"), 404, "not_found")
    problem(await client.post(f"/api/v1/operations/{NOBODY}/stop"), 404, "not_found")


@happy("GET", "/queues")
async def queues_have_figures(client: httpx.AsyncClient, pool: Pool) -> None:
    await factories.make_task(pool, queue="a")
    await factories.make_task(pool, queue="a", delay=3_600)
    await factories.make_task(pool, State.RUNNING, queue="b")
    queues = {queue["name"]: queue for queue in (await client.get("/api/v1/queues")).json()["queues"]}
    a = queues["a"]
    assert (a["depth"], a["ready"], a["delayed"], a["paused"], a["enqueued_total"]) == (2, 1, 1, False, 2)
    assert a["oldest_ready_age"] >= 0
    assert (queues["b"]["running"], queues["b"]["depth"]) == (1, 0)


@happy("GET", "/queues/{name}")
async def one_queue(client: httpx.AsyncClient, pool: Pool) -> None:
    await factories.make_task(pool, State.DEAD, queue="a")
    assert (await client.get("/api/v1/queues/a")).json()["dead"] == 1


@happy("POST", "/queues/{name}/pause")
@happy("POST", "/queues/{name}/resume")
async def pause_and_resume(client: httpx.AsyncClient, pool: Pool) -> None:
    paused = await client.post("/api/v1/queues/mail/pause")
    again = await client.post("/api/v1/queues/mail/pause")
    assert (paused.status_code, paused.json()["paused"]) == (200, True)
    assert again.json()["paused_at"] == paused.json()["paused_at"]
    resumed = await client.post("/api/v1/queues/mail/resume")
    assert (resumed.status_code, resumed.json()["paused"]) == (200, False)
    assert "paused_at" not in resumed.json()


@happy("PATCH", "/queues/{name}")
async def limit_of_a_queue(client: httpx.AsyncClient, pool: Pool) -> None:
    body = {"type": "echo", "queue": "mail"}
    found = (await client.patch("/api/v1/queues/mail", json={"limit": 1})).json()
    assert found["limit"] == 1
    assert "full" not in found
    assert (await client.post("/api/v1/tasks", json=body)).status_code == 201
    # At once, and what is not named stays.
    problem(await client.post("/api/v1/tasks", json=body), 429, "queue_full")
    found = (await client.patch("/api/v1/queues/mail", json={"retention": 60})).json()
    assert (found["limit"], found["full"], found["retention"]) == (1, True, 60)
    found = (await client.patch("/api/v1/queues/mail", json={"limit": None})).json()
    assert found.keys() & {"limit", "full", "retention"} == {"retention"}
    assert (await client.post("/api/v1/tasks", json=body)).status_code == 201


@happy("PATCH", "/queues/{name}")
async def retention_and_objective_of_a_queue(client: httpx.AsyncClient, pool: Pool) -> None:
    for field, values in {"retention": (3600, 0.5, None), "wait_objective": (30, 1.5, None)}.items():
        for seconds in values:
            answer = await client.patch("/api/v1/queues/mail", json={field: seconds})
            assert (answer.status_code, answer.json().get(field)) == (200, seconds)
            assert await pool.fetchval(f"SELECT {field} FROM dhara.queues WHERE name = 'mail'") == seconds
    last = (await Audit(pool).list(action="queue.objective"))[0]
    assert (last.before, last.after) == ('{"wait_objective" : 1.5}', '{"wait_objective" : null}')


@unhappy("PATCH", "/queues/{name}")
async def settings_of_a_queue_change_together_or_not_at_all(client: httpx.AsyncClient, pool: Pool) -> None:
    await pool.execute("ALTER TABLE dhara.queues ADD CONSTRAINT refused CHECK (wait_objective <> 77)")
    body = {"limit": 5, "retention": 60, "wait_objective": 77}
    assert (await client.patch("/api/v1/queues/mail", json=body)).status_code >= 500
    problem(await client.get("/api/v1/queues/mail"), 404, "not_found")
    assert await Audit(pool).list() == []
    body["wait_objective"] = 78
    found = (await client.patch("/api/v1/queues/mail", json=body)).json()
    assert (found["limit"], found["retention"], found["wait_objective"]) == (5, 60, 78)


@unhappy("PATCH", "/queues/{name}")
async def wrong_settings_of_a_queue(client: httpx.AsyncClient, pool: Pool) -> None:
    problem(await client.patch("/api/v1/queues/A%20B", json={"retention": 1}), 404, "not_found")
    problem(await client.patch("/api/v1/queues/mail", content=b"{", headers=JSON), 400, "invalid_json")
    problem(await client.patch("/api/v1/queues/mail", json={}), 404, "not_found")  # nothing makes it come to be
    bodies: list[Any] = [
        [],
        {"retention": "1h"},
        {"retention": True},
        {"retention": -1},
        {"retention": 1e300},
        {"wait_objective": 0.5},
        {"wait_objective": "30s"},
        {"limit": -1},
        {"limit": 10**12 + 1},
        {"limit": 5.0},
        {"limit": True},
        {"limit": "5"},
    ]
    for body in [*bodies, {"retention": 1, "paused": True}]:
        found = problem(await client.patch("/api/v1/queues/mail", json=body), 422, "invalid_queue")
        assert found["errors"]
    assert (await client.get("/api/v1/queues")).json() == {"queues": []}


@unhappy("POST", "/queues/{name}/pause")
@unhappy("POST", "/queues/{name}/resume")
async def no_queue_of_that_name_can_be(client: httpx.AsyncClient, pool: Pool) -> None:
    for act in ("pause", "resume"):
        problem(await client.post(f"/api/v1/queues/A%20B/{act}"), 404, "not_found")
    assert (await client.get("/api/v1/queues")).json() == {"queues": []}


@happy("GET", "/schedules")
@happy("POST", "/schedules")
@happy("GET", "/schedules/{name}")
@happy("PATCH", "/schedules/{name}")
@happy("POST", "/schedules/{name}/pause")
@happy("POST", "/schedules/{name}/resume")
@happy("POST", "/schedules/{name}/run")
@happy("DELETE", "/schedules/{name}")
async def a_schedules_life(client: httpx.AsyncClient, pool: Pool) -> None:
    body = {"name": "n", "type": "t", "cron": "0 3 * * *", "timezone": "Europe/Berlin", "payload": {"a": 1.0}}
    made = await post(client, json.dumps(body | {"overlap": "skip"}), "/api/v1/schedules")
    assert (made.status_code, made.headers["location"]) == (201, "/api/v1/schedules/n")
    assert made.json().items() >= (body | {"source": "operator", "paused": False, "missed": "coalesce"}).items()
    changed = await client.patch("/api/v1/schedules/n", content='{"every": 60, "queue": "q"}', headers=JSON)
    found = changed.json()
    assert (found["every"], found["queue"], found["overlap"], "cron" in found) == (60.0, "q", "skip", False)
    assert '"payload":{"a": 1.0}' in changed.text
    assert (len(found["upcoming"]), found["upcoming"][0], found["fires"]) == (5, found["next_at"], [])
    assert (await client.post("/api/v1/schedules/n/pause")).json()["paused_by"] == "api"
    assert (await client.post("/api/v1/schedules/n/resume")).json()["paused"] is False
    ran = await client.post("/api/v1/schedules/n/run")
    assert ran.status_code == 201
    task = (await client.get(f"/api/v1/tasks/{ran.json()['task_id']}")).json()
    assert (task["type"], task["queue"], task["payload"]) == ("t", "q", {"a": 1.0})
    (fire,) = (await client.get("/api/v1/schedules/n")).json()["fires"]
    assert (fire["outcome"], fire["status"], fire["task_id"]) == ("by_hand", "PENDING", task["id"])
    assert [one["name"] for one in (await client.get("/api/v1/schedules")).json()["schedules"]] == ["n"]
    assert (await client.delete("/api/v1/schedules/n")).json()["name"] == "n"
    assert (await client.get("/api/v1/schedules")).json() == {"schedules": []}


@unhappy("POST", "/schedules")
@unhappy("PATCH", "/schedules/{name}")
async def schedules_that_cannot_be(client: httpx.AsyncClient, pool: Pool) -> None:
    good = {"name": "n", "type": "t", "every": 60}
    for wrong, field in (
        ({"cron": "* * * * *"}, "cron"),
        ({"every": 0.5}, "every"),
        ({"every": None}, "every"),
        ({"every": None, "cron": "0 0 30 2 *"}, "cron"),
        ({"timezone": "Mars"}, "timezone"),
        ({"name": "No Name"}, "name"),
        ({"priority": 101}, "priority"),
        ({"missed": "later"}, "missed"),
        ({"catch_up_most": 1.5}, "catch_up_most"),
        ({"what": 1}, "what"),
    ):
        found = problem(await post(client, json.dumps(good | wrong), "/api/v1/schedules"), 422, "invalid_task")
        assert field in [error["field"] for error in found["errors"]], (wrong, found)
    assert (await post(client, json.dumps(good), "/api/v1/schedules")).status_code == 201
    problem(await post(client, json.dumps(good), "/api/v1/schedules"), 409, "schedule_exists")
    for body in ('{"name": "m"}', '{"cron": "no"}', '{"cron": "@daily", "every": 5}'):
        problem(await client.patch("/api/v1/schedules/n", content=body, headers=JSON), 422, "invalid_task")


@unhappy("GET", "/schedules/{name}")
@unhappy("DELETE", "/schedules/{name}")
@unhappy("POST", "/schedules/{name}/pause")
@unhappy("POST", "/schedules/{name}/resume")
@unhappy("POST", "/schedules/{name}/run")
async def no_such_schedule(client: httpx.AsyncClient, pool: Pool) -> None:
    problem(await client.get("/api/v1/schedules/n"), 404, "not_found")
    problem(await client.delete("/api/v1/schedules/n"), 404, "not_found")
    for verb in ("pause", "resume", "run"):
        problem(await client.post(f"/api/v1/schedules/n/{verb}"), 404, "not_found")


@happy("GET", "/workers")
async def workers_with_what_they_run(client: httpx.AsyncClient, pool: Pool) -> None:
    live = await factories.make_worker(pool, types=["t", "u"], queues={"mail": 3})
    lost = await factories.make_worker(pool, state="lost")
    task = await factories.make_task(pool, State.RUNNING, worker=live)
    workers = {worker["id"]: worker for worker in (await client.get("/api/v1/workers")).json()["workers"]}
    assert workers[str(lost)]["state"] == "lost"
    shown = workers[str(live)]
    assert (shown["state"], shown["types"], shown["queues"]) == ("live", ["t", "u"], {"mail": 3})
    assert [one["id"] for one in shown["tasks"]] == [str(task.id)]


@happy("POST", "/workers/{id}/drain")
async def a_worker_is_drained(client: httpx.AsyncClient, pool: Pool) -> None:
    live, gone = await factories.make_worker(pool), await factories.make_worker(pool, state="lost")
    task = await factories.make_task(pool, State.RUNNING, worker=live)
    answer = await client.post(f"/api/v1/workers/{live}/drain")
    shown = answer.json()
    assert (answer.status_code, shown["state"], shown["drain_requested_by"]) == (200, "draining", "api")
    assert [one["id"] for one in shown["tasks"]] == [str(task.id)]
    listed = (await client.get("/api/v1/workers")).json()["workers"]
    assert {worker["id"]: worker["state"] for worker in listed} == {str(live): "draining", str(gone): "lost"}
    refused = problem(await client.post(f"/api/v1/workers/{gone}/drain"), 409, "wrong_state")
    assert refused["state"] == "lost" and refused["detail"].startswith("the worker is lost")


@happy("GET", "/stats")
async def figures_add_up(client: httpx.AsyncClient, pool: Pool) -> None:
    for state in State:
        await factories.make_task(pool, state, cancel_requested=state is State.CANCELED)
    stats = (await client.get("/api/v1/stats")).json()
    assert stats["by_status"] == dict.fromkeys(State, 1)
    assert stats["totals"]["enqueued"] == 5
    assert stats["pending"] == {"ready": 1, "delayed": 0}


# keys


@happy("GET", "/keys")
@happy("POST", "/keys")
@happy("POST", "/keys/{key}/rotate")
@happy("DELETE", "/keys/{key}")
async def a_key_s_life(client: httpx.AsyncClient, pool: Pool) -> None:
    wish = {"name": "shop", "scopes": ["admin"], "rate": 50, "expires_in": 3600}
    answer = await post(client, json.dumps(wish), "/api/v1/keys")
    made = answer.json()
    assert (answer.status_code, made["name"], made["scopes"], made["valid"]) == (201, "shop", ["admin"], True)
    assert re.fullmatch(f"dh_{made['id']}_[A-Za-z0-9_-]{{43}}", made["key"])
    # From here on the server is closed.
    problem(await client.get("/api/v1/keys"), 401, "unauthorized")
    client.headers["authorization"] = f"Bearer {made['key']}"
    turned = await client.post(f"/api/v1/keys/{made['id']}/rotate?overlap=60")
    assert (turned.status_code, turned.json()["rate"]) == (201, 50)
    keys = {key["id"]: key for key in (await client.get("/api/v1/keys")).json()["keys"]}
    assert keys[made["id"]]["replaced_by"] == turned.json()["id"]
    assert {key["valid"] for key in keys.values()} == {True}
    assert not any("key" in key for key in keys.values())
    gone = await client.delete(f"/api/v1/keys/{made['id']}")
    assert (gone.status_code, gone.json()["valid"], gone.json()["revoked_by"]) == (200, False, "shop")
    problem(await client.get("/api/v1/keys"), 401, "unauthorized")
    client.headers["authorization"] = f"Bearer {turned.json()['key']}"
    assert (await client.get("/api/v1/keys")).status_code == 200


@unhappy("POST", "/keys/{key}/rotate")
@unhappy("DELETE", "/keys/{key}")
async def no_such_key(client: httpx.AsyncClient, pool: Pool) -> None:
    for id in ("0" * 12, "x", "A" * 12, "%00"):
        problem(await client.post(f"/api/v1/keys/{id}/rotate"), 404, "not_found")
        problem(await client.delete(f"/api/v1/keys/{id}"), 404, "not_found")


# health, metrics, reference


@happy("GET", "/stats/history")
async def rates_of_no_time(client: httpx.AsyncClient, pool: Pool) -> None:
    """More of it: test_events.py."""
    found = (await client.get("/api/v1/stats/history?minutes=5")).json()
    assert found == {name: [] for name in ("at", "enqueued", "completed", "failed", "dead", "depth")}


@happy("GET", "/events")
async def events_have_tests_of_their_own(client: httpx.AsyncClient, pool: Pool) -> None:
    """Streams do not end by themselves: test_events.py."""
    assert (await client.get("/api/v1/events?what=1")).status_code == 422


@happy("GET", "/audit")
async def who_did_what(client: httpx.AsyncClient, pool: Pool) -> None:
    task = await created(client)
    await client.post("/api/v1/queues/q/pause")
    await client.post("/api/v1/queues/q/pause")  # nothing more to change, nothing to record
    await client.delete(f"/api/v1/tasks/{task['id']}", params={"reason": "no"})
    await client.post("/api/v1/queues/q/resume")
    found = (await client.get("/api/v1/audit")).json()
    assert [(one["action"], one["target"], one["actor"]) for one in found["actions"]] == [
        ("queue.resume", "q", "api"),
        ("task.cancel", task["id"], "api"),
        ("queue.pause", "q", "api"),
    ]
    assert "next_before" not in found
    assert found["actions"][1]["before"] == {"status": "PENDING"}
    assert found["actions"][1]["after"] == {"status": "CANCELED", "reason": "no"}
    page = (await client.get("/api/v1/audit?limit=1&action=queue")).json()
    assert [one["action"] for one in page["actions"]] == ["queue.resume"]
    rest = (await client.get(f"/api/v1/audit?action=queue&before={page['next_before']}")).json()
    assert [one["action"] for one in rest["actions"]] == ["queue.pause"]
    assert (await client.get("/api/v1/audit?actor=nobody")).json() == {"actions": []}


@happy("GET", "/livez")
async def it_lives(client: httpx.AsyncClient, pool: Pool) -> None:
    for path in ("/livez", "/api/v1/livez"):
        answer = await client.get(path)
        assert (answer.status_code, answer.json()["status"]) == (200, "ok")


@happy("GET", "/readyz")
async def it_is_ready(client: httpx.AsyncClient, pool: Pool) -> None:
    for path in ("/readyz", "/healthz", "/health", "/api/v1/readyz", "/api/v1/health"):
        answer = await client.get(path)
        assert answer.status_code == 200, answer.text
        shown = answer.json()
        assert shown["uptime_s"] >= 0
        assert {name: check["status"] for name, check in shown["checks"].items()} == {
            "db": "ok",
            "migrations": "ok",
            "workers": "none",
        }
        assert shown["checks"]["db"]["latency_ms"] > 0


@unhappy("GET", "/readyz")
async def it_is_not_ready_with_another_schema(client: httpx.AsyncClient, pool: Pool) -> None:
    await pool.execute("ALTER TABLE dhara.histograms RENAME TO elsewhere")
    answer = await client.get("/readyz")
    assert answer.status_code == 503
    assert answer.headers["retry-after"]
    assert answer.json()["checks"]["migrations"]["status"] == "failed"


@happy("GET", "/metrics")
async def the_seed_families_are_there(client: httpx.AsyncClient, pool: Pool) -> None:
    await created(client)
    text = (await client.get("/metrics")).text
    assert "tasks_enqueued_total 1\n" in text
    assert 'tasks_by_status{status="PENDING"} 1\n' in text
    assert 'tasks_pending_breakdown{status="ready"} 1\n' in text
    assert (await client.get("/api/v1/metrics")).headers["content-type"].startswith("text/plain; version=0.0.4")


@happy("GET", "/openapi.json")
async def the_document_is_served(client: httpx.AsyncClient, pool: Pool) -> None:
    for path in ("/openapi.json", "/api/v1/openapi.json"):
        assert (await client.get(path)).json()["info"]["version"] == "1.2.3"


@happy("GET", "/docs")
@happy("GET", "/docs/{file}")
async def the_page_needs_nothing_from_elsewhere(client: httpx.AsyncClient, pool: Pool) -> None:
    page = await client.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert "<script>" not in page.text
    assert "style=" not in page.text
    assert "http://" not in page.text
    assert "https://" not in page.text
    for name, kind in (("docs.js", "text/javascript"), ("docs.css", "text/css")):
        assert f"/docs/{name}" in page.text
        for prefix in ("/docs", "/api/v1/docs"):
            answer = await client.get(f"{prefix}/{name}")
            assert (answer.status_code, answer.headers["content-type"].partition(";")[0]) == (200, kind)


@unhappy("GET", "/docs/{file}")
async def no_other_file_is_served(client: httpx.AsyncClient, pool: Pool) -> None:
    for name in ("docs.html", "..%2f..%2fwire.py", "__init__.py", ""):
        problem(await client.get(f"/docs/{name}"), 404, "not_found")


# What operators do: each of these leaves a line that says who, what and to what (S32).
DEEDS = {(route.method, route.path) for route in TABLE if route.method != "GET" and route.scope in (OPERATE, ADMIN)}
CASES = [
    *((f"{' '.join(at)}: {check.__name__}", check, at in DEEDS) for at, checks in HAPPY.items() for check in checks),
    *((f"{' '.join(at)}: {check.__name__}", check, False) for at, checks in UNHAPPY.items() for check in checks),
]


@pytest.mark.parametrize(("check", "deed"), [case[1:] for case in CASES], ids=[name for name, *_ in CASES])
async def test_route(client: httpx.AsyncClient, pool: Pool, check: Check, deed: bool) -> None:
    await check(client, pool)
    if deed:
        found = await pool.fetch("SELECT actor, action, target FROM dhara.audit_log")
        assert found, "nothing of this stands in the audit log"
        assert all(row["actor"] and "." in row["action"] and row["target"] for row in found)


def test_every_route_has_a_happy_test() -> None:
    assert {(route.method, route.path) for route in TABLE} == set(HAPPY)


NAMED = [route for route in TABLE if "{id}" in route.path or (route.method, route.path) == ("GET", "/queues/{name}")]


@pytest.mark.parametrize("route", NAMED, ids=[f"{route.method} {route.path}" for route in NAMED])
async def test_the_unknown_is_a_404(client: httpx.AsyncClient, route: Any) -> None:
    path = route.path.replace("{id}", NOBODY).replace("{name}", "nobody")
    problem(await client.request(route.method, BASE + path), 404, "not_found")


def test_every_route_with_errors_of_its_own_has_an_unhappy_test() -> None:
    own = {"not_found", "wrong_state", "idempotency_conflict", "invalid_batch"}
    wanted = {(route.method, route.path) for route in TABLE if own & set(route.errors)}
    assert wanted <= set(UNHAPPY) | {(route.method, route.path) for route in NAMED}


async def test_who_is_told(client: httpx.AsyncClient, pool: Pool, wakes: Wakes) -> None:
    await created(client, queue="now")
    await created(client, queue="later", delay=60)
    await created(client, queue="now", idempotency_key="k")
    await created_again(client)
    # The first has told whoever sleeps by its own commit.
    assert wakes.woken == ["now"]
    dead = await factories.make_task(pool, State.DEAD, queue="dead")
    await client.post(f"/api/v1/tasks/{dead.id}/retry")
    assert wakes.woken[1:] == ["dead"]
    worker = uuid4()
    running = await factories.make_task(pool, State.RUNNING, worker=worker)
    await client.delete(f"/api/v1/tasks/{running.id}")
    assert wakes.canceled == [worker]
    other = await factories.make_worker(pool)
    await client.post(f"/api/v1/workers/{other}/drain")
    assert wakes.canceled == [worker, other]


async def created_again(client: httpx.AsyncClient) -> None:
    answer = await post(client, b'{"type":"echo","queue":"now","idempotency_key":"k"}')
    assert answer.status_code == 200

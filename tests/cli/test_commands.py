"""What each command does and shows."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine
from typing import Any, TypeVar
from uuid import uuid4

import pytest

from dhara import State, Task
from dhara.store.pool import DatabaseSettings, Pool
from tests.cli.conftest import Dhara
from tests.factories import make_task, make_worker

T = TypeVar("T")


def arrange(dsn: str, work: Any) -> Any:
    """What `work` answers, given a pool."""

    async def inner() -> Any:
        async with Pool(DatabaseSettings(dsn=dsn, pool_min=0)) as pool:
            coroutine: Coroutine[Any, Any, Any] = work(pool)
            return await coroutine

    return asyncio.run(inner())


def task_in(dsn: str, state: State, **fields: Any) -> Task:
    made: Task = arrange(dsn, lambda pool: make_task(pool, state, **fields))
    return made


def test_enqueue_with_everything(dhara: Dhara) -> None:
    task = dhara.json(
        "enqueue", "email.send", '{"to":  "a@b.c", "n": 1.0}', "--queue", "mail", "--priority", "50", "--max-retries", "2",
        "--delay", "5m", "--timeout", "30s", "--idempotency-key", "k", "--concurrency-key", "c", "--tag", "x", "--tag", "y",
        "--unique-key", "u", "--unique-for", "2h", "--on-conflict", "replace", "--retention", "7d",
        "--expires-at", "2099-01-01T00:00:00Z", "--traceparent", "00-" + "a" * 32 + "-" + "b" * 16 + "-01",
    )  # fmt: skip
    wanted = {
        "type": "email.send",
        "queue": "mail",
        "priority": 50,
        "max_retries": 2,
        "timeout": 30.0,
        "tags": ["x", "y"],
        "unique_key": "u",
        "retention": 604_800.0,
    }
    assert task.items() >= (wanted | {"idempotency_key": "k", "concurrency_key": "c", "created": True}).items()
    assert task["status"] == "PENDING"
    shown = dhara("tasks", "get", task["id"], "--json").stdout
    assert '"a@b.c"' in shown
    assert json.loads(shown)["payload"] == {"to": "a@b.c", "n": 1.0}
    again = dhara.json("enqueue", "email.send", '{"n": 1.0, "to": "a@b.c"}', "--idempotency-key", "k")
    assert (again["id"], again["created"]) == (task["id"], False)
    replaced = dhara.json("enqueue", "email.send", "7", "--unique-key", "u", "--on-conflict", "replace")
    assert (replaced["id"], replaced["payload"], replaced["created"]) == (task["id"], 7, False)


def test_enqueue_prints_the_id_alone_for_pipes(dhara: Dhara) -> None:
    id = dhara("enqueue", "echo").stdout.strip()
    assert dhara.json("tasks", "get", id)["payload"] == {}


def test_enqueue_reads_standard_input(dhara: Dhara) -> None:
    assert dhara.json("enqueue", "t", "-", input='\n[1, {"a": null}]\n')["payload"] == [1, {"a": None}]
    assert "PAYLOAD" in dhara("enqueue", "t", "-", input="", code=2).stderr


def test_enqueue_and_wait_says_how_it_ended(dhara: Dhara, dsn: str) -> None:
    done = task_in(dsn, State.COMPLETED, type="t", idempotency_key="k", result='{"n": 1}')
    assert dhara.json("enqueue", "t", "{}", "--idempotency-key", "k", "--wait")["result"] == {"n": 1}
    dead = task_in(dsn, State.DEAD, type="t", idempotency_key="d")
    assert dhara.json("tasks", "wait", str(dead.id), code=1)["status"] == "DEAD"
    assert dhara.json("tasks", "wait", str(done.id))["status"] == "COMPLETED"
    assert "not in time" not in dhara("enqueue", "t", "--wait", "--wait-timeout", "50ms", code=75).stderr


@pytest.mark.parametrize(
    "arguments,named",
    [
        (["t", "{"], "PAYLOAD"),
        (["t", "NaN"], "PAYLOAD"),
        (["t", "1e-100000"], "PAYLOAD"),
        (["t", '{"a": 1, "a": 2}'], "PAYLOAD"),
        (["t", '"\\u0000"'], "PAYLOAD"),
        (["T!"], "type"),
        (["t", "--priority", "101"], "priority"),
        (["t", "--priority", "high"], "--priority"),
        (["t", "--delay", "soon"], "--delay"),
        (["t", "--delay", "5m", "--run-at", "2099-01-01T00:00:00Z"], "delay"),
        (["t", "--run-at", "2026-01-01"], "--run-at"),
        (["t", "--run-at", "2020-01-01T00:00:00Z"], "run_at"),
        (["t", "--tag", ""], "tags"),
        (["t", "{}", "more"], "more"),
        (["t", "--colour"], "--colour"),
        ([], "TYPE"),
    ],
)
def test_enqueue_refuses_by_name(dhara: Dhara, arguments: list[str], named: str) -> None:
    result = dhara("enqueue", *arguments, code=2)
    assert named in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert result.stdout == ""
    assert dhara.json("tasks", "list")["total"] == 0


def test_list_filters(dhara: Dhara, dsn: str) -> None:
    dead = task_in(dsn, State.DEAD, type="a", queue="q")
    task_in(dsn, State.COMPLETED, type="b")
    for arguments in (
        ["--status", "dead"],
        ["--type", "a"],
        ["--queue", "q"],
        ["--status", "DEAD", "--status", "CANCELED"],
        ["--q", str(dead.id)],
    ):
        assert [task["id"] for task in dhara.json("tasks", "list", *arguments)["tasks"]] == [str(dead.id)]
    page = dhara.json("tasks", "list", "--limit", "1")
    assert (page["total"], len(page["tasks"])) == (2, 1)
    rest = dhara.json("tasks", "list", "--after", page["next_cursor"])
    assert [task["id"] for task in rest["tasks"]] == [str(dead.id)]
    assert dhara.json("tasks", "list", "-q", "no such text")["total"] == 0
    assert "no such task" in dhara("tasks", "list", "--type", "none").stdout
    lines = dhara("tasks", "list").stdout.splitlines()
    assert lines[0].split() == ["ID", "TYPE", "QUEUE", "STATUS", "ATTEMPTS", "ENQUEUED", "LAST", "ERROR"]
    assert len(lines) == 3
    assert "--limit" in dhara("tasks", "list", "--limit", "501", code=2).stderr


def test_hostile_text_cannot_steer_the_terminal(dhara: Dhara, dsn: str) -> None:
    task_in(dsn, State.PENDING, failures=1)
    arrange(
        dsn,
        lambda pool: pool.execute("UPDATE dhara.tasks SET last_error = E'x\\x1b]0;owned\\x07\\ny\\u202e'"),
    )
    for arguments in (["tasks", "list"], ["tasks", "get", dhara.json("tasks", "list")["tasks"][0]["id"]]):
        out = dhara(*arguments).stdout
        assert not {"\x1b", "\x07", "\u202e"} & set(out)


def test_cancel(dhara: Dhara, dsn: str) -> None:
    id = dhara("enqueue", "t").stdout.strip()
    assert dhara.json("tasks", "cancel", id, "--reason", "by hand")["status"] == "CANCELED"
    assert dhara.json("tasks", "cancel", id)["status"] == "CANCELED"
    running = task_in(dsn, State.RUNNING)
    assert "cancel_requested_at" in dhara.json("tasks", "cancel", str(running.id))
    done = task_in(dsn, State.COMPLETED)
    answer = dhara.json("tasks", "cancel", str(done.id), code=1)
    assert answer["error"]["code"] == "wrong_state"
    assert "COMPLETED" in answer["error"]["message"]
    # Or many, by a filter; never all by mistake.
    for wrong in ([], ["--reason", "x", "--all"], [id, "--type", "t"], ["-q", "", "--yes"], ["--type", "", "--yes"]):
        dhara("tasks", "cancel", *wrong, code=2)
    dhara("enqueue", "old.type")
    assert "would change 1 task\n" in dhara("tasks", "cancel", "--type", "old.type", "--dry-run").stdout
    assert dhara.json("tasks", "cancel", "--type", "old.type", "--yes")["operation"]["done"] == 1


def test_retry(dhara: Dhara, dsn: str) -> None:
    dead = task_in(dsn, State.DEAD)
    task = dhara.json("tasks", "retry", str(dead.id), "--payload", '{"b": 2}', "--queue", "other", "--priority", "3")
    assert (task["status"], task["payload"], task["queue"], task["priority"]) == (
        "PENDING",
        {"b": 2},
        "other",
        3,
    )
    assert "PENDING" in dhara("tasks", "retry", str(dead.id), code=1).stderr


def test_unknown_tasks(dhara: Dhara) -> None:
    for command in ("get", "cancel", "retry", "logs", "attempts", "wait"):
        for id in (str(uuid4()), "nonsense"):
            assert "there is no task" in dhara("tasks", command, id, code=1).stderr
            assert dhara.json("tasks", command, id, code=1)["error"]["code"] == "not_found"


def test_logs_and_attempts(dhara: Dhara, dsn: str) -> None:
    task = task_in(dsn, State.COMPLETED, failures=1)
    logs = dhara.json("tasks", "logs", str(task.id))["logs"]
    assert [entry["event"] for entry in logs] == ["ENQUEUED", "CLAIMED", "RETRIED", "CLAIMED", "COMPLETED"]
    attempts = dhara.json("tasks", "attempts", str(task.id))["attempts"]
    assert [(a["attempt"], a["outcome"]) for a in attempts] == [(1, "RETRIED"), (2, "COMPLETED")]
    assert "RUNNING → COMPLETED" in dhara("tasks", "logs", str(task.id)).stdout
    assert "attempt 2" in dhara("tasks", "attempts", str(task.id)).stdout
    fresh = dhara("enqueue", "t").stdout.strip()
    assert "not been tried" in dhara("tasks", "attempts", fresh).stdout


def test_queues(dhara: Dhara, dsn: str) -> None:
    assert dhara.json("queues", "list") == {"queues": []}
    assert "no queue" in dhara("queues", "list").stdout
    dhara("enqueue", "t", "--queue", "mail")
    dhara("enqueue", "t", "--queue", "mail", "--delay", "5m")
    queue = dhara.json("queues", "get", "mail")
    assert (queue["depth"], queue["ready"], queue["delayed"], queue["paused"]) == (2, 1, 1, False)
    assert dhara.json("queues", "pause", "mail")["paused"]
    assert "paused" in dhara("queues", "list").stdout
    assert "paused by" in dhara("queues", "get", "mail").stdout
    assert not dhara.json("queues", "resume", "mail")["paused"]
    assert "no queue" in dhara("queues", "get", "none", code=1).stderr
    assert "queue" in dhara("queues", "pause", "No Name", code=2).stderr


def test_workers(dhara: Dhara, dsn: str) -> None:
    assert "no worker" in dhara("workers").stdout
    assert dhara.json("workers") == {"workers": []}
    worker = arrange(dsn, lambda pool: make_worker(pool, types=["a", "b"], slots=7))
    task = task_in(dsn, State.RUNNING, worker=worker)
    [shown] = dhara.json("workers")["workers"]
    assert (shown["id"], shown["slots"], shown["state"], shown["types"]) == (
        str(worker),
        7,
        "live",
        ["a", "b"],
    )
    assert [running["id"] for running in shown["tasks"]] == [str(task.id)]
    assert "a, b" in dhara("workers").stdout
    assert "a, b" in dhara("workers", "list").stdout
    [asked] = dhara.json("workers", "drain", str(worker))["workers"]
    assert (asked["state"], asked["drain_requested_by"][:4]) == ("draining", "cli:")
    assert "draining" in dhara("workers").stdout
    assert "no worker" in dhara("workers", "drain", str(task.id), code=1).stderr
    dhara("workers", "drain", "7", code=2)


def test_migrate(dhara_on_empty: Dhara) -> None:
    dhara = dhara_on_empty
    assert dhara.json("migrate", "status", code=3)["applied"] == []
    assert "migrate up" in dhara("tasks", "list", code=3).stderr
    assert dhara.json("tasks", "list", code=3)["error"]["code"] == "schema_error"
    assert "0001_tasks" in dhara("migrate").stdout
    assert dhara("migrate", "up").stdout == "nothing to do\n"
    assert json.loads(dhara("migrate", "--json").stdout) == {"applied": []}
    assert dhara.json("migrate", "status")["missing"] == []
    dhara("enqueue", "t")
    assert "--yes" in dhara("migrate", "down", "--json", code=2).stderr
    dhara("migrate", "down", input="n\n", code=130)
    assert dhara.json("migrate", "status")["missing"] == []
    taken = dhara.json("migrate", "down", "99", "--yes")["taken_back"]
    assert taken[-1] == "0001_tasks"
    assert dhara.json("migrate", "up")["applied"] == taken[::-1]


def test_what_no_worker_knows_is_said_to_be_unroutable(dhara: Dhara) -> None:
    id = dhara("enqueue", "nobody.knows").stdout.strip()
    assert "unroutable: no live worker knows the type nobody.knows" in dhara("tasks", "get", id).stdout
    assert "unroutable: 1 ready in queue default" in dhara("queues", "list").stdout
    found = dhara.json("queues", "list")["unroutable"]
    assert found == [{"type": "nobody.knows", "queue": "default", "count": 1}]


def test_queue_retention(dhara: Dhara) -> None:
    assert dhara.json("queues", "retention", "mail", "7d")["retention"] == 604_800
    assert "7d" in dhara("queues", "get", "mail").stdout
    assert "retention" not in dhara.json("queues", "retention", "mail", "default")
    dhara("queues", "retention", "mail", "soon", code=2)


def test_queue_objective(dhara: Dhara) -> None:
    assert dhara.json("queues", "objective", "mail", "30s")["wait_objective"] == 30
    assert "objective  30s\n" in dhara("queues", "get", "mail").stdout
    assert "wait_objective" not in dhara.json("queues", "objective", "mail", "default")
    assert "5m (the general setting)" in dhara("queues", "get", "mail").stdout
    for wrong in ("soon", "0", "2000d"):
        dhara("queues", "objective", "mail", wrong, code=2)


def test_queue_limit(dhara: Dhara) -> None:
    assert dhara.json("queues", "limit", "mail", "1")["limit"] == 1
    dhara("enqueue", "echo", "--queue", "mail")
    assert dhara.json("queues", "get", "mail")["full"] is True
    assert "1 (full)" in dhara("queues", "list").stdout
    assert "queue mail takes 1 PENDING tasks" in dhara("enqueue", "echo", "--queue", "mail", code=69).stderr
    assert "limit" not in dhara.json("queues", "limit", "mail", "default")
    dhara("enqueue", "echo", "--queue", "mail")
    dhara("queues", "limit", "mail", "-5", code=2)


def test_keys(dhara: Dhara) -> None:
    made = dhara("keys", "create", "shop", "--scope", "enqueue", "--queue", "mail*", "--rate", "5", "--expires", "90d")
    key = made.stdout.strip()
    assert key not in made.stderr
    (listed,) = dhara.json("keys", "list")["keys"]
    assert (listed["name"], listed["scopes"], listed["queues"], listed["rate"]) == ("shop", ["enqueue"], ["mail*"], 5)
    assert key.startswith(f"dh_{listed['id']}_")
    turned = dhara.json("keys", "rotate", listed["id"], "--overlap", "0")
    assert turned["key"].startswith(f"dh_{turned['id']}_")
    revoked = dhara.json("keys", "revoke", turned["id"])
    assert (revoked["valid"], "key" in revoked) == (False, False)
    shown = dhara("keys", "list").stdout
    assert "expired" in shown
    assert "revoked" in shown
    assert key[-20:] not in shown
    dhara("keys", "rotate", turned["id"], code=1)
    for wrong in (["--scope", "root"], ["--scope", "read", "--queue", "A"], ["--scope", "read", "--rate", "nan"]):
        dhara("keys", "create", "x", *wrong, code=2)

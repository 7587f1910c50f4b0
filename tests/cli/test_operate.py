"""The commands of people on call."""

from __future__ import annotations

from typing import Any

from dhara import State
from dhara.store.pool import Pool
from tests.cli.conftest import Dhara
from tests.factories import make_task

from .test_commands import arrange, task_in


def test_why_a_task_waits(dhara: Dhara) -> None:
    task = dhara.json("enqueue", "nobody.knows", "{}", "--delay", "1h")
    dhara("queues", "pause", "default")
    found = dhara.json("tasks", "explain", task["id"])
    assert [found["code"], *(one["code"] for one in found["also"])] == ["queue_paused", "no_worker", "delayed"]
    shown = dhara("tasks", "explain", task["id"]).stdout
    assert "(queue_paused)" in shown.splitlines()[0]
    dhara("tasks", "explain", "01890a5d-ac96-774b-bcce-b302099a8057", code=1)
    actions = dhara.json("actions")["actions"]
    assert [(one["action"], one["target"]) for one in actions] == [("queue.pause", "default")]
    assert actions[0]["actor"].startswith("cli")
    assert "queue.pause" in dhara("actions", "--actor", actions[0]["actor"]).stdout


def test_the_dead_in_bulk(dhara: Dhara, dsn: str) -> None:
    async def make(pool: Pool) -> list[Any]:
        return [await make_task(pool, State.DEAD, type=type, fingerprint=f"f:{type}") for type in "aab"]

    arrange(dsn, make)
    groups = dhara.json("dead", "groups")["groups"]
    assert {(group["fingerprint"], group["count"]) for group in groups} == {("f:a", 2), ("f:b", 1)}
    assert "f:a" in dhara("dead", "groups", "--type", "a").stdout
    assert "muted" in dhara("dead", "mute", "f:b").stdout
    assert dhara.json("dead", "unmute", "f:b")["muted"] is False
    dhara("dead", "mute", "f:nothing", code=1)
    assert dhara.json("dead", "list", "--group", "f:a")["total"] == 2
    assert "say --all" in dhara("dead", "purge", code=2).stderr
    assert "would change 2 tasks" in dhara("dead", "retry", "--group", "f:a", "--dry-run").stdout
    dhara("dead", "retry", "--group", "f:a", input="n\n", code=130)
    assert dhara.json("dead", "list")["total"] == 3
    assert "done" in dhara("dead", "retry", "--group", "f:a", "--yes").stdout
    purged = dhara.json("dead", "purge", "--all", "--yes")["operation"]
    assert (purged["state"], purged["done"]) == ("done", 1)
    listed = dhara.json("operations", "list")["operations"]
    assert [(one["kind"], one["done"]) for one in listed] == [("purge", 1), ("retry", 2)]
    assert "purge" in dhara("operations", "get", purged["id"]).stdout
    assert dhara.json("operations", "stop", purged["id"])["state"] == "done"
    task_in(dsn, State.DEAD)
    canary = dhara.json("dead", "retry", "--all", "--canary", "5", "--dry-run")
    assert canary["count"] == 1

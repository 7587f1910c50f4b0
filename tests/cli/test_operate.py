"""The commands of people on call."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import sys
import time
from typing import Any

from dhara import State
from dhara.store.pool import Pool
from dhara.store.queues import Queues
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


def test_schedules(dhara: Dhara) -> None:
    assert "no schedule yet" in dhara("schedules", "list").stdout
    made = dhara.json(
        "schedules", "create", "nightly", "report", '{"a":  1}', "--cron", "0 3 * * *", "--tz", "Europe/Berlin"
    )
    assert (made["cron"], made["timezone"], made["payload"], len(made["upcoming"])) == (
        "0 3 * * *", "Europe/Berlin", {"a": 1}, 5,
    )  # fmt: skip
    assert "already" in dhara("schedules", "create", "nightly", "x", "--every", "1h", code=2).stderr
    assert "cron" in dhara("schedules", "create", "bad", "x", "--cron", "no", code=2).stderr
    assert "zone" in dhara("schedules", "create", "bad", "x", "--cron", "@daily", "--tz", "Mars", code=2).stderr
    changed = dhara.json("schedules", "update", "nightly", "--every", "5m", "--overlap", "skip", "--jitter", "30s")
    assert (changed["every"], changed["overlap"], changed["jitter"], "cron" in changed) == (300.0, "skip", 30.0, False)
    assert dhara.json("schedules", "pause", "nightly")["paused"]
    assert "paused" in dhara("schedules", "list").stdout
    assert not dhara.json("schedules", "resume", "nightly")["paused"]
    task = dhara("schedules", "run", "nightly").stdout.strip()
    assert dhara.json("tasks", "get", task)["type"] == "report"
    shown = dhara("schedules", "get", "nightly").stdout
    assert "every 5m" in shown
    assert "by_hand" in shown
    dhara("schedules", "delete", "nightly")
    assert dhara.json("schedules", "list") == {"schedules": []}
    dhara("schedules", "delete", "nightly", code=1)
    code = "from dhara import Registry\ntasks = Registry()\n@tasks.every(60)\n@tasks.task('beat')\ndef beat(): ...\n"
    (dhara.folder / "declared_here.py").write_text(code)
    assert dhara.run("schedules", "declare", "declared_here").stdout == "beat: every 1m\n"
    assert dhara.json("schedules", "list")["schedules"][0]["source"] == "code"


def test_the_doctor(dhara: Dhara, dhara_on_empty: Dhara, dsn: str) -> None:
    async def make(pool: Pool) -> None:
        await make_task(pool, type="nobody.knows")
        await Queues(pool).pause("default", "ada")

    arrange(dsn, make)
    # The tests' server runs without fsync, and the doctor does not like that.
    answer = json.loads(dhara.run("doctor", "--json").stdout)
    found = {one["check"]: one for one in answer["findings"]}
    assert found.pop("durability")["status"] in ("fail", "ok")
    assert {check for check, one in found.items() if one["status"] == "fail"} == set()
    assert {check for check, one in found.items() if one["status"] == "warn"} >= {
        "workers",
        "unroutable",
        "paused queues",
    }
    assert "nobody.knows (1 ready)" in found["unroutable"]["seen"]
    assert found["migrations"]["status"] == found["role"]["status"] == found["clock"]["status"] == "ok"
    assert "→ run `dhara migrate up`" in dhara_on_empty("doctor", code=1).stdout
    dhara("doctor", "--strict", code=1)


def test_top_once(dhara: Dhara, dsn: str) -> None:
    running = task_in(dsn, State.RUNNING, queue="mail", type="email.send")
    shown = dhara("top", "--once").stdout
    assert "mail" in shown
    assert str(running.id) in shown
    found = dhara.json("top")
    assert found["queues"][0]["running"] == 1
    assert [task["id"] for worker in found["workers"] for task in worker["tasks"]] == [str(running.id)]


def test_top_on_a_terminal(dhara: Dhara, dsn: str) -> None:
    """As a person sees it: the other screen, drawn again and again, keys, and the terminal as it was."""
    for name in ("busy", "calm"):
        task_in(dsn, State.PENDING, queue=name)
    task_in(dsn, State.PENDING, queue="busy")
    child, terminal = pty.fork()  # the child does nothing but exec
    if child == 0:
        os.environ.update(dhara.environ, TERM="xterm", COLUMNS="48", LINES="40")
        os.chdir(dhara.folder)
        os.execv(sys.executable, [sys.executable, "-m", "dhara", "top", "--interval", "0.2s"])
    seen = ""

    def until(text: str) -> str:
        nonlocal seen
        deadline = time.monotonic() + 60
        while text not in seen:
            assert time.monotonic() < deadline, seen
            if select.select([terminal], [], [], 1)[0]:
                try:
                    seen += os.read(terminal, 65_536).decode(errors="replace")
                except OSError:
                    break
        before, _, seen = seen.partition(text)
        return before

    try:
        assert "\x1b[?1049h" in until("now by depth")
        os.write(terminal, b"s")
        screen = until("now by name")
        assert screen.index("busy") < screen.index("calm")
        assert "pending 3" in screen
        widths = [len(re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line)) for line in screen.split("\x1b[H")[1].splitlines()]
        assert max(widths) == 48, "what is wider would wrap; the table of queues is"
        until("now by name")  # it is drawn again by itself
        os.write(terminal, b"q")
        until("\x1b[?1049l")
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        os.close(terminal)


def test_the_shell_completes(dhara_alone: Dhara) -> None:
    for words, wanted in (
        ("dhara sch", "schedules"),
        ("dhara dead ret", "retry"),
        ("dhara tasks list --sta", "--status"),
    ):
        asked = dhara_alone.environ | {
            "_DHARA_COMPLETE": "bash_complete",
            "COMP_WORDS": words,
            "COMP_CWORD": str(words.count(" ")),
        }
        answer = Dhara(asked, dhara_alone.folder).run()
        assert answer.stdout.split() == [f"plain,{wanted}"]

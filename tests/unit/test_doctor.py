"""What the doctor makes of what was seen."""

from __future__ import annotations

from typing import Any

import pytest

from dhara.domain.doctor import FAIL, OK, WARN, Examined, Holder, TableHealth, Wait, examine


def seen(**values: Any) -> Examined:
    """A healthy database and fleet, but for `values`."""
    usual: dict[str, Any] = {
        "server_version": 180_006,
        "version_text": "18.6",
        "role": "dhara",
        "own_version": "1.0",
        "versions": {"1.0": 2},
        "workers": 2,
        "tables": [TableHealth("tasks", 1_000, 100, 60.0)],
    }
    return Examined(**usual | values)


def test_the_healthy_have_nothing() -> None:
    assert {finding.status for finding in examine(seen())} == {OK}
    assert all(finding.cure is None for finding in examine(seen()))


# what is wrong -> (check, status, what is said of it)
SICK: dict[str, tuple[dict[str, Any], str, str, str]] = {
    "old server": ({"server_version": 140_010, "version_text": "14.10"}, "version", FAIL, "15 or newer"),
    "standby": ({"standby": True}, "writable", FAIL, "a standby"),
    "read-only": ({"read_only": True}, "writable", FAIL, "primary"),
    "migrations": ({"missing": ["0003_operate"]}, "migrations", FAIL, "dhara migrate up"),
    "role": ({"denied": ["UPDATE tasks"]}, "role", FAIL, "UPDATE tasks"),
    "fsync": ({"fsync": False}, "durability", FAIL, "fsync = on"),
    "asynchronous": ({"synchronous_commit": "off"}, "durability", WARN, "synchronous_commit = on"),
    "connections": ({"connections": 90}, "connections", WARN, "90 of 100"),
    "clock": ({"clock": -7.0}, "clock", WARN, "7.0 s behind"),
    "notify": ({"notify_usage": 0.7}, "notify queue", FAIL, "70% full"),
    "autovacuum": ({"autovacuum": False}, "autovacuum", FAIL, "autovacuum = on"),
    "dead rows": ({"tables": [TableHealth("tasks", 10, 90_000, None)]}, "dead rows", WARN, "vacuumed never"),
    "horizon": (
        {"holders": [Holder("session", "42 (psql, idle in transaction)", 900)]},
        "vacuum horizon",
        WARN,
        "backend(42)",
    ),
    "prepared": ({"holders": [Holder("prepared transaction", "x", 900)]}, "vacuum horizon", WARN, "ROLLBACK PREPARED"),
    "slot": ({"holders": [Holder("replication slot", "x", 900)]}, "vacuum horizon", WARN, "slot"),
    "no worker": ({"workers": 0, "versions": {}}, "workers", WARN, "dhara worker MODULE"),
    "silent": ({"silent": 20.0}, "workers", WARN, "not beaten for 20 s"),
    "versions": ({"versions": {"1.0": 1, "0.9": 2}}, "worker versions", WARN, "2 on 0.9; this is 1.0"),
    "unroutable": ({"unroutable": {"x": 1_200}}, "unroutable", WARN, "x (1,200 ready)"),
    "paused": ({"paused": {"mail": 7}}, "paused queues", WARN, "mail (7 waiting)"),
    "backlog": (
        {"waits": [Wait("a", 400.0, 3600.0), Wait("b", 900.0)]},
        "backlog",
        WARN,
        "b: the oldest ready task has waited for 15 min",
    ),
    "schedules": ({"stopped_schedules": ["nightly"]}, "schedules", WARN, "nightly"),
}


@pytest.mark.parametrize("name", SICK)
def test_each_illness_is_named_with_its_cure(name: str) -> None:
    values, check, status, says = SICK[name]
    (finding,) = [found for found in examine(seen(**values)) if found.status != OK]
    assert (finding.check, finding.status) == (check, status)
    assert says in f"{finding.seen} {finding.cure}"
    assert finding.cure

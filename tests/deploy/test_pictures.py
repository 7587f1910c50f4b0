"""What deploy/ asks of Prometheus is there: every metric and label that the dashboard and the alerts name is in a real
answer of /metrics."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest

from chaos.alerts import gauges, holds
from dhara.api.asgi import create_app
from dhara.domain.lifecycle import State
from dhara.settings import Settings
from dhara.store.pool import Pool
from dhara.store.stats import Histogram, Stats
from dhara.telemetry.metrics import BUCKETS, HISTOGRAMS
from tests.factories import make_task

ROOT = Path(__file__).parents[2]
ALERTS = (ROOT / "deploy/prometheus-alerts.yml").read_text()
DASHBOARD = json.loads((ROOT / "deploy/grafana-dashboard.json").read_text())
NAME = re.compile(r"\b((?:tasks|workers|dhara)_[a-z_]+)\b(\{[^}]*\})?")


def expressions() -> list[str]:
    asked = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    asked += [variable["query"] for variable in DASHBOARD["templating"]["list"] if variable["type"] == "query"]
    return asked + re.findall(r"(?m)^ +expr: (.+)$", ALERTS)


@pytest.fixture
async def exposition(pool: Pool) -> str:
    """A real answer, of a database where something of everything has happened."""
    await make_task(pool, State.COMPLETED)
    await make_task(pool, type="nobody.knows")
    seen = [Histogram(name, "default", "t", 1.0, [1] * (len(BUCKETS) + 1)) for name in HISTOGRAMS]
    await Stats(pool).observe(seen)
    app = create_app(pool=pool, settings=Settings())
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8080") as client:
        await client.get("/api/v1/tasks")
        return (await client.get("/metrics")).text


async def test_every_metric_and_label_exists(exposition: str) -> None:
    series: dict[str, set[str]] = {}
    for line in exposition.splitlines():
        if not line.startswith("#"):
            name, _, labels = line.partition(" ")[0].partition("{")
            series.setdefault(name, set()).update(re.findall(r"(\w+)=", labels))
    asked = expressions()
    assert len(asked) > 30
    for expression in asked:
        names = NAME.findall(expression)
        assert names, expression
        for name, matchers in names:
            assert name in series, f"{name} of `{expression}` is in no answer of /metrics"
            wanted = set(re.findall(r"(\w+)=", matchers))
            for grouped in re.findall(r"by \(([^)]*)\)", expression):
                wanted |= {label.strip() for label in grouped.split(",")}
            assert wanted <= series[name], f"{name} has no label {wanted - series[name]}: `{expression}`"


def test_the_dashboard_is_made_by_its_script() -> None:
    spec = importlib.util.spec_from_file_location("make_grafana", ROOT / "scripts/make_grafana.py")
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.dashboard() == DASHBOARD
    assert module.main(["--check"]) == 0


def test_every_alert_is_explained() -> None:
    page = (ROOT / "docs/how-to/monitor.md").read_text()
    assert [name for name in re.findall(r"alert: (\w+)", ALERTS) if name not in page] == []


async def test_starved_of_vacuum_a_queue_is_reported_and_a_busy_one_is_not(exposition: str) -> None:
    """By rates of a few hundred tasks a second for minutes, not by a million dead rows, which a small queue never has."""

    def reported(dead: int, live: int) -> bool:
        told = {"dhara_database_dead_rows": float(dead), "dhara_database_live_rows": float(live)}
        return holds("DharaDeadRows", gauges(exposition) | told)

    assert not reported(4_000, 400_000)  # what a soak has
    assert not reported(1_500_000, 10_000_000)  # fifteen dead in a hundred live
    assert reported(150_000, 300_000)  # four minutes at 300 a second

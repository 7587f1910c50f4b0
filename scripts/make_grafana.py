"""Writes deploy/grafana-dashboard.json from a short table of panels.

python scripts/make_grafana.py            write it
python scripts/make_grafana.py --check    exit 1 if it is not current
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

FILE = Path(__file__).parent.parent / "deploy" / "grafana-dashboard.json"
Q = '{queue=~"$queue"}'

# Title, width of 24, unit, kind, [(expression, legend)]
PANELS: list[tuple[str, int, str, str, list[tuple[str, str]]]] = [
    ("Ready", 4, "short", "stat", [('max(tasks_pending_breakdown{status="ready"})', "ready")]),
    ("Running", 4, "short", "stat", [("max(workers_inflight)", "running")]),
    ("Workers", 4, "short", "stat", [("max(workers_total)", "workers")]),
    ("Dead", 4, "short", "stat", [('max(tasks_by_status{status="DEAD"})', "dead")]),
    ("Oldest ready", 4, "s", "stat", [("max(dhara_queue_oldest_ready_age_seconds)", "oldest")]),
    ("Slots in use", 4, "percentunit", "stat", [("max(workers_inflight) / max(dhara_worker_slots)", "in use")]),
    (
        "Tasks a second", 12, "ops", "timeseries",
        [
            ("max(rate(tasks_enqueued_total[1m]))", "enqueued"),
            ("max(rate(tasks_completed_total[1m]))", "completed"),
            ("max(rate(tasks_canceled_total[1m]))", "canceled"),
        ],
    ),
    (
        "Failures a second", 12, "ops", "timeseries",
        [
            ("max(rate(tasks_attempt_failures_total[1m]))", "failed attempts"),
            ("max(rate(tasks_retried_total[1m]))", "retried"),
            ("max(rate(tasks_dead_total[1m]))", "dead"),
            ("max(rate(tasks_reaped_total[1m]))", "taken back"),
        ],
    ),
    ("Depth by queue", 12, "short", "timeseries", [(f"max by (queue) (dhara_queue_depth{Q})", "{{queue}}")]),
    (
        "Oldest ready by queue", 12, "s", "timeseries",
        [(f"max by (queue) (dhara_queue_oldest_ready_age_seconds{Q})", "{{queue}}")],
    ),
    (
        "Wait, median and 99th percentile", 12, "s", "timeseries",
        [
            (f"histogram_quantile(0.5, max by (le) (rate(dhara_task_wait_seconds_bucket{Q}[5m])))", "p50"),
            (f"histogram_quantile(0.99, max by (le) (rate(dhara_task_wait_seconds_bucket{Q}[5m])))", "p99"),
        ],
    ),
    (
        "Run time by type, 99th percentile", 12, "s", "timeseries",
        [(f"histogram_quantile(0.99, max by (le, type) (rate(dhara_task_run_seconds_bucket{Q}[5m])))", "{{type}}")],
    ),
    (
        "Claims and settlements, 99th percentile", 8, "s", "timeseries",
        [
            ("histogram_quantile(0.99, max by (le) (rate(dhara_claim_seconds_bucket[5m])))", "claim"),
            ("histogram_quantile(0.99, max by (le) (rate(dhara_settle_seconds_bucket[5m])))", "settle"),
        ],
    ),
    (
        "Tasks a batch", 8, "short", "timeseries",
        [
            ("max(rate(dhara_claim_batch_tasks_sum[5m])) / max(rate(dhara_claim_batch_tasks_count[5m]))", "claimed"),
            ("max(rate(dhara_settle_batch_tasks_sum[5m])) / max(rate(dhara_settle_batch_tasks_count[5m]))", "settled"),
        ],
    ),
    ("Heartbeat age", 8, "s", "timeseries", [("max(dhara_heartbeat_age_seconds)", "oldest beat")]),
    (
        "Database", 12, "short", "timeseries",
        [
            ("max(dhara_database_dead_rows)", "dead rows"),
            ("max(dhara_database_oldest_transaction_seconds)", "oldest transaction, s"),
        ],
    ),
    (
        "HTTP, 99th percentile by route", 12, "s", "timeseries",
        [("histogram_quantile(0.99, sum by (le, route) (rate(dhara_http_request_seconds_bucket[5m])))", "{{route}}")],
    ),
]  # fmt: skip


def dashboard() -> dict[str, Any]:
    """The dashboard as Grafana imports it."""
    panels, x, y = [], 0, 0
    for number, (title, width, unit, kind, targets) in enumerate(PANELS, 1):
        height = 4 if kind == "stat" else 8
        if x + width > 24:
            x, y = 0, y + (4 if panels[-1]["type"] == "stat" else 8)
        panels.append(
            {
                "id": number,
                "title": title,
                "type": kind,
                "datasource": {"type": "prometheus", "uid": "${datasource}"},
                "gridPos": {"x": x, "y": y, "w": width, "h": height},
                "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
                "targets": [
                    {"refId": chr(65 + n), "expr": expr, "legendFormat": legend}
                    for n, (expr, legend) in enumerate(targets)
                ],
            }
        )
        x += width
    variables = [
        {"name": "datasource", "type": "datasource", "query": "prometheus"},
        {
            "name": "queue",
            "type": "query",
            "datasource": {"type": "prometheus", "uid": "${datasource}"},
            "query": "label_values(dhara_queue_depth, queue)",
            "includeAll": True,
            "multi": True,
            "allValue": ".*",
            "refresh": 2,
        },
    ]
    return {
        "uid": "dhara",
        "title": "dhara",
        "tags": ["dhara"],
        "schemaVersion": 39,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": variables},
        "panels": panels,
    }


def main(arguments: list[str]) -> int:
    text = json.dumps(dashboard(), indent=1, ensure_ascii=False) + "\n"
    if "--check" in arguments:
        return 0 if FILE.is_file() and FILE.read_text() == text else 1
    FILE.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""What fits the OpenAPI document is accepted, or refused for a reason that JSON Schema cannot express: what there is, what
two fields say together, or a text that no database stores."""

from __future__ import annotations

import re
from typing import Any

# What there is, or how much of it.
STATE = {
    *("not_found", "wrong_state", "schedule_exists", "idempotency_conflict"),
    *("queue_full", "rate_limited", "overloaded", "unauthorized"),
}
# U+0000 and lone surrogates, anywhere.
TEXT = {"invalid_string"}
# Fields that exclude one another, lie in the past, or may hold no control characters.
FIELDS = {
    "invalid_task": {
        *("run_at", "delay", "expires_at", "unique_for", "on_conflict", "unique_key", "concurrency_key", "tags"),
        *("idempotency_key", "Idempotency-Key"),
        # For JSON Schema 1.0 is an integer.
        *("priority", "max_retries", "catch_up_most"),
        # Of a schedule: one of the two, and a zone that there is.
        *("cron", "every", "timezone"),
    },
    "invalid_query": {
        *("cursor", "created_after", "created_before", "q", "tag", "reason", "actor", "action", "target", "before"),
        *("all", "canary", "factor", "most", "max_failed", "watch", "offset"),
    },
    "invalid_key": {"name"},
    "invalid_queue": {"limit"},
}
FIELDS["invalid_batch"] = FIELDS["invalid_task"]


def check(case: Any, response: Any) -> None:
    """Raise `AssertionError` where data that fits was refused without such a reason."""
    if case.meta is None or not case.meta.generation.mode.is_positive or not 400 <= response.status_code < 500:
        return
    problem = response.json()
    code = problem["code"]
    if code in STATE | TEXT:
        return
    named = {re.sub(r"^\[\d+\]\.|\[\d+\]$", "", error["field"]) for error in problem.get("errors", ())}
    if not named or not named <= FIELDS.get(code, set()):
        raise AssertionError(f"what fits was refused: {problem}")

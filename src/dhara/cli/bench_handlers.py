"""What the worker of `dhara bench` runs."""

from __future__ import annotations

import time
from typing import Any

from dhara.worker.registry import Registry

tasks = Registry()


@tasks.task("dhara.bench")
async def nothing(**payload: Any) -> float:
    """Answer the moment of the start, seconds since 1970 by this machine's clock."""
    return time.time()

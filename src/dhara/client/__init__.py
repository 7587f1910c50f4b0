"""The library: enqueue tasks, ask after them, wait for their results. `AsyncClient`, and `Client` for code without a loop."""

from __future__ import annotations

from dhara.client.asynchronous import AsyncClient, Handle
from dhara.client.middleware import Middleware, Proceed
from dhara.client.synchronous import Client, SyncHandle
from dhara.domain.task import NewTask

__all__ = ["AsyncClient", "Client", "Handle", "Middleware", "NewTask", "Proceed", "SyncHandle"]

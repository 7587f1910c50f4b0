"""A worker of the release before: it knows two types only (F58)."""

from __future__ import annotations

from chaos import handlers
from dhara import Registry

tasks = Registry()
tasks.middleware(handlers.noted)
for _known in (handlers.noop, handlers.sleep):
    tasks.task(_known.type, retry=handlers.QUICKLY)(_known.function)

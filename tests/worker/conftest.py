from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from dhara.store.pool import Pool
from tests.worker.kit import Desk


@pytest.fixture
async def desk(pool: Pool) -> AsyncIterator[Desk]:
    """Enqueue, wait and look, on the test's database."""
    made = Desk(pool)
    yield made
    await made.notifier.close()

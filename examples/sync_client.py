"""Enqueue from code without an event loop: scripts, threads, Django or Flask views.

dhara worker examples.handlers &
python -m examples.sync_client
"""

import os

from dhara import Client
from examples.handlers import make_report


def main() -> None:
    with Client(os.environ["DHARA_DATABASE_URL"]) as dhara:
        handle = dhara.enqueue(make_report.s(month="2026-12"), tags=["finance"])
        print(handle.id, handle.result(timeout=30))


if __name__ == "__main__":
    main()

"""Enqueue in your own transaction: the task exists if and only if your rows do.

python -m examples.transactions
"""

import asyncio
import os

import asyncpg
import psycopg

from dhara import AsyncClient, Client
from examples.handlers import send_email

DSN = os.environ.get("DHARA_DATABASE_URL", "")


async def with_asyncpg() -> None:
    connection = await asyncpg.connect(DSN)
    async with AsyncClient(DSN) as dhara:
        await connection.execute("CREATE TABLE IF NOT EXISTS example_users (email text PRIMARY KEY)")
        async with connection.transaction():
            await connection.execute("INSERT INTO example_users VALUES ('eve@example.org') ON CONFLICT DO NOTHING")
            handle = await dhara.enqueue_tx(connection, send_email.s(to="eve@example.org", subject="Welcome"))
        print("committed:", await handle.status())
    await connection.close()


def with_psycopg() -> None:
    with psycopg.connect(DSN) as connection, Client(DSN) as dhara:
        handle = dhara.enqueue_tx(connection, send_email.s(to="kim@example.org", subject="Welcome"))
        connection.rollback()
        print("rolled back, nothing will be sent:", handle.id)


if __name__ == "__main__":
    asyncio.run(with_asyncpg())
    with_psycopg()

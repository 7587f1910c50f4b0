"""The small parsers, guided by coverage: none may raise anything but what it says it raises.

    pip install atheris
    python -m fuzz.parsers [--seconds 600] [names ...]

Each parser gets a process of its own and so many seconds. A crash stops the command and is printed with its input.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from tempfile import TemporaryDirectory

from dhara.api import params
from dhara.api.masking import Mask
from dhara.api.problems import Refused
from dhara.api.strict import parse
from dhara.api.wire import query
from dhara.domain import access
from dhara.domain.validate import parse_time
from dhara.errors import ConfigError
from dhara.settings import duration
from dhara.store.pool import check_dsn
from dhara.telemetry.log import escape
from dhara.telemetry.redact import redact

CANARY = "c4n4ry"


def _duration(data: bytes) -> None:
    with suppress(ValueError):
        assert 0 < duration(data.decode("utf-8", "ignore")) <= 10 * 365 * 86_400


def _time(data: bytes) -> None:
    moment = parse_time(data.decode("utf-8", "surrogateescape"))
    assert moment is None or moment.tzinfo is not None


def _json(data: bytes) -> None:
    with suppress(Refused):
        parse(data, 65)


def _query(data: bytes) -> None:
    with suppress(Refused):
        query(data, params.TASKS)


def _dsn(data: bytes) -> None:
    text = data.decode("utf-8", "ignore")
    with suppress(ConfigError):
        check_dsn(text)
    # Whatever stands around it, the password of a URL goes.
    assert CANARY not in redact(f"{text} postgresql://user:{CANARY}@host/db")
    assert CANARY not in redact(f"{text} password={CANARY}")


def _key(data: bytes) -> None:
    text = data.decode("utf-8", "ignore")
    id = access.key_id(text)
    assert id is None or (text.startswith(f"dh_{id}_") and len(text) == 59)


def _mask(data: bytes) -> None:
    text = data.decode("utf-8", "ignore")
    with suppress(Refused):
        parse(text.encode(), 65)
        assert Mask(("a.b", "*.c", "0")).apply(text) is not None


def _line(data: bytes) -> None:
    line = escape(data.decode("utf-8", "surrogateescape"))
    assert len(line.splitlines()) <= 1
    line.encode()


PARSERS: dict[str, Callable[[bytes], None]] = {
    "duration": _duration,
    "time": _time,
    "json": _json,
    "query": _query,
    "dsn": _dsn,
    "key": _key,
    "mask": _mask,
    "line": _line,
}


def one(name: str, seconds: int) -> None:
    """Fuzz one parser in this process; never returns."""
    import atheris

    atheris.instrument_all()
    with TemporaryDirectory(prefix="dhara-fuzz-") as folder:
        atheris.Setup([sys.argv[0], f"-max_total_time={seconds}", f"-artifact_prefix={folder}/"], PARSERS[name])
        atheris.Fuzz()


def main(names: list[str], seconds: int) -> int:
    failed = []
    for name in names or list(PARSERS):
        print(f"{name}: {seconds} s", flush=True)
        command = [sys.executable, "-m", "fuzz.parsers", "--one", name, "--seconds", str(seconds)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        lines = done.stderr.strip().splitlines()
        print(
            "  " + next((line for line in reversed(lines) if line.startswith("Done")), f"exit code {done.returncode}")
        )
        if done.returncode:
            failed.append(name)
            print("\n".join(lines[-40:]))
    print(f"{len(names or PARSERS)} parsers, crashes in: {', '.join(failed) or 'none'}")
    return 1 if failed else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="PARSER", help=", ".join(PARSERS))
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--one", choices=PARSERS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        one(arguments.one, arguments.seconds)
    sys.exit(main(arguments.names, arguments.seconds))

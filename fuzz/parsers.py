"""The small parsers, guided by coverage: none may raise anything but what it says it raises.

    pip install atheris
    python -m fuzz.parsers [--seconds 600] [--corpus FOLDER] [names ...]

Each parser gets a process of its own and so many seconds. A crash stops the command and is printed with its input. In
FOLDER the inputs that led further are kept, so that a later run goes on from there.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

NAMES = ["duration", "time", "json", "cron", "cursor", "query", "dsn", "key", "mask", "line"]


def one(name: str, seconds: int, corpus: str) -> None:
    """Fuzz one parser in this process; never returns."""
    import atheris

    # Only what is instrumented guides it; all of the standard library would take minutes.
    with atheris.instrument_imports(include=["dhara", "fuzz.targets"]):
        from fuzz.targets import PARSERS
    with TemporaryDirectory(prefix="dhara-fuzz-") as folder:
        kept = Path(corpus or folder) / name
        kept.mkdir(parents=True, exist_ok=True)
        options = [f"-max_total_time={seconds}", f"-artifact_prefix={folder}/", str(kept)]
        atheris.Setup([sys.argv[0], *options], PARSERS[name])
        atheris.Fuzz()


def main(names: list[str], seconds: int, corpus: str) -> int:
    failed = []
    names = names or NAMES
    for name in names:
        print(f"{name}: {seconds} s", flush=True)
        command = [sys.executable, "-m", "fuzz.parsers", "--one", name, "--seconds", str(seconds)]
        command += ["--corpus", corpus]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        lines = done.stderr.strip().splitlines()
        print(
            "  " + next((line for line in reversed(lines) if line.startswith("Done")), f"exit code {done.returncode}")
        )
        if done.returncode:
            failed.append(name)
            print("\n".join(lines[-40:]))
    print(f"{len(names)} parsers, crashes in: {', '.join(failed) or 'none'}")
    return 1 if failed else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="PARSER", help=", ".join(NAMES))
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--corpus", default="", metavar="FOLDER")
    parser.add_argument("--one", choices=NAMES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        one(arguments.one, arguments.seconds, arguments.corpus)
    sys.exit(main(arguments.names, arguments.seconds, arguments.corpus))

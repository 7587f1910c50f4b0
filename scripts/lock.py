"""Write requirements/*.txt from pyproject.toml: pinned, hashed for every platform, naming no registry.

    python scripts/lock.py             newest versions that pyproject.toml allows
    python scripts/lock.py --keep      keep the pins that still fit; add or drop what changed

uv does the resolving, in a throw-away environment unless it is on PATH. It asks its own default index, or the
one in UV_DEFAULT_INDEX; pip's configuration plays no part, so hashes are the public registry's.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# What .venv needs to install dhara itself without reaching for an unhashed build backend.
BUILD = "hatchling\n"
LOCKS = {
    "runtime": ["embedded"],
    "dev": ["embedded", "client", "psycopg", "process", "otel", "dev"],
}
HEADER = "# Written by `make lock` from pyproject.toml; do not edit. {about}\n"
ABOUT = {
    "runtime": "What `make demo` installs: dhara and its PostgreSQL.",
    "dev": "What `make install` installs: the above and all that the tests need.",
}


def find_uv(folder: Path) -> str:
    """uv's path; installs it below `folder` if the machine has none."""
    if found := shutil.which("uv"):
        return found
    print("lock: fetching uv", flush=True)
    venv.create(folder / "uv", with_pip=True)
    subprocess.run([folder / "uv/bin/python", "-m", "pip", "install", "--quiet", "uv"], check=True)
    return str(folder / "uv/bin/uv")


def compile_lock(uv: str, name: str, extras: list[str], folder: Path, *, keep: bool) -> None:
    """Resolve one lock; `dev` keeps to the versions of `runtime`."""
    target = ROOT / f"requirements/{name}.txt"
    (folder / "build.in").write_text(BUILD)
    command = [uv, "pip", "compile", "pyproject.toml", str(folder / "build.in"), "--quiet", "--universal"]
    command += ["--python-version=3.11", "--generate-hashes", "--no-annotate", "--no-header"]
    command += ["--no-emit-index-url", "--no-emit-find-links", f"--output-file={folder / target.name}"]
    command += [f"--extra={extra}" for extra in extras]
    if name != "runtime":
        command += ["--constraint=requirements/runtime.txt"]
    if keep and target.exists():
        shutil.copy(target, folder / target.name)
    print(f"lock: resolving {target.relative_to(ROOT)}", flush=True)
    subprocess.run(command, cwd=ROOT, check=True)
    body = (folder / target.name).read_text()
    if "://" in body:
        sys.exit(f"lock: {target.relative_to(ROOT)} would name a registry")
    target.write_text(HEADER.format(about=ABOUT[name]) + re.sub(r"^# Written by.*\n", "", body))
    print(f"lock: {len(re.findall(r'^[a-z0-9]', body, re.MULTILINE | re.IGNORECASE))} packages", flush=True)


def main() -> None:
    keep = "--keep" in sys.argv[1:]
    with tempfile.TemporaryDirectory() as name:
        uv = find_uv(Path(name))
        for lock, extras in LOCKS.items():
            compile_lock(uv, lock, extras, Path(name), keep=keep)


if __name__ == "__main__":
    main()

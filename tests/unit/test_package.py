"""S35, S36: what is shipped, and what it brings along."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_wheel_holds_the_package_and_nothing_else(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-cache-dir"]
    environ = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(tmp_path),
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_NO_INDEX": "1",
    }
    subprocess.run([*build, "--wheel-dir", str(tmp_path), str(ROOT)], check=True, env=environ, timeout=100)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        shipped = {name for name in archive.namelist() if ".dist-info/" not in name}
        source = {
            path.relative_to(ROOT / "src").as_posix(): path
            for path in (ROOT / "src" / "dhara").rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        }
        assert shipped == set(source)
        assert all(archive.read(name) == path.read_bytes() for name, path in source.items())
        # Nothing of it runs when it is installed.
        about = {name.partition(".dist-info/")[2] for name in archive.namelist() if ".dist-info/" in name}
    assert about == {"METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE"}


def test_importing_it_starts_nothing() -> None:
    code = (
        "import sys, threading, dhara; assert threading.active_count() == 1;"
        "print(sorted({'asyncpg', 'starlette', 'uvicorn', 'httpx', 'subprocess'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


def test_the_bill_of_materials_is_the_lock() -> None:
    spec = importlib.util.spec_from_file_location("sbom", ROOT / "scripts/sbom.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    lock = (ROOT / "requirements/runtime.txt").read_text()
    found = module.document(lock)["components"]
    assert len(found) == sum(1 for line in lock.splitlines() if "==" in line) > 10
    assert all(one["hashes"] and one["version"] for one in found)

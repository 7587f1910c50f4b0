"""The third-party files are those that were vendored, each package with its licence."""

from __future__ import annotations

import hashlib
import json
from importlib.resources import files
from pathlib import Path


def test_what_was_vendored_is_what_is_served() -> None:
    folder = Path(str(files("dhara.dashboard") / "static" / "vendor"))
    manifest = json.loads((folder / "manifest.json").read_text())
    wanted = {name: digest for entry in manifest.values() for name, digest in entry["sha256"].items()}
    present = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    present.pop("manifest.json")
    assert present == wanted
    assert all(any("LICENSE" in name for name in entry["sha256"]) for entry in manifest.values())

"""The software bill of materials of an installation, CycloneDX 1.6, from the lock; to standard output.

    python scripts/sbom.py [requirements/runtime.txt]

Names, versions and hashes are the lock's; licences are what the installed distributions say, where they are installed.
"""

from __future__ import annotations

import json
import re
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
_PIN = re.compile(r"^([A-Za-z0-9._-]+)(?:\[[^\]]*\])?==([^\s;\\]+)")
_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")


def components(lock: str) -> list[dict[str, Any]]:
    """One component a pinned distribution, in the lock's order."""
    found: list[dict[str, Any]] = []
    for line in lock.splitlines():
        if pin := _PIN.match(line):
            name, version = pin[1].lower().replace("_", "-"), pin[2]
            purl = f"pkg:pypi/{name}@{version}"
            found.append({"type": "library", "name": name, "version": version, "purl": purl, "bom-ref": purl})
            if licence := _licence(name):
                found[-1]["licenses"] = [{"license": {"name": licence}}]
        if found and (hashes := _HASH.findall(line)):
            found[-1].setdefault("hashes", []).extend({"alg": "SHA-256", "content": one} for one in hashes)
    return found


def _licence(name: str) -> str | None:
    try:
        about = metadata.metadata(name)
    except metadata.PackageNotFoundError:
        return None
    classifiers = [c.rpartition(" :: ")[2] for c in about.get_all("Classifier") or () if c.startswith("License ::")]
    return about.get("License-Expression") or next(iter(classifiers), None)


def document(lock: str) -> dict[str, Any]:
    """The whole bill."""
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": {"type": "application", "name": "dhara", "version": metadata.version("dhara")}},
        "components": components(lock),
    }


if __name__ == "__main__":
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "requirements" / "runtime.txt"
    print(json.dumps(document(path.read_text()), indent=2))

"""Refresh the third-party files of the dashboard from npm, with their licences and a manifest of hashes.

    scripts/vendor.py            the versions of PACKAGES, written anew
    scripts/vendor.py --check    only compare what is there with the manifest

Nothing is built: each file is the one that its package ships.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent / "src" / "dhara" / "dashboard" / "static" / "vendor"
MANIFEST = FOLDER / "manifest.json"
# package -> version, licence, {file in the package: name here}
PACKAGES: dict[str, tuple[str, str, dict[str, str]]] = {
    "htmx.org": (
        "4.0.1",
        "0BSD",
        {"dist/htmx.min.js": "htmx.min.js", "LICENSE": "htmx.LICENSE.txt"},
    ),
    "uplot": (
        "1.6.32",
        "MIT",
        {
            "dist/uPlot.iife.min.js": "uplot.min.js",
            "dist/uPlot.min.css": "uplot.min.css",
            "LICENSE": "uplot.LICENSE.txt",
        },
    ),
}


def fetch(package: str, version: str, files: dict[str, str]) -> dict[str, bytes]:
    """The wanted files of a package, by their names here."""
    with tempfile.TemporaryDirectory() as folder:
        packed = subprocess.run(
            ["npm", "pack", f"{package}@{version}", "--silent", "--pack-destination", folder],
            check=True,
            capture_output=True,
            text=True,
        )
        with tarfile.open(Path(folder) / packed.stdout.strip().splitlines()[-1]) as archive:
            found = {}
            for inside, name in files.items():
                member = archive.extractfile(f"package/{inside}")
                if member is None:
                    sys.exit(f"{package}@{version} has no file {inside}")
                found[name] = member.read()
            return found


def refresh() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    manifest: dict[str, object] = {}
    for package, (version, licence, files) in PACKAGES.items():
        contents = fetch(package, version, files)
        for name, data in contents.items():
            (FOLDER / name).write_bytes(data)
        hashes = {name: hashlib.sha256(data).hexdigest() for name, data in sorted(contents.items())}
        manifest[package] = {"version": version, "licence": licence, "sha256": hashes}
        print(f"{package} {version}: {', '.join(hashes)}")
    MANIFEST.write_text(json.dumps(manifest, indent=2) + "\n")


def problems() -> list[str]:
    """What differs between the files and the manifest."""
    manifest = json.loads(MANIFEST.read_text())
    wanted = {name: digest for entry in manifest.values() for name, digest in entry["sha256"].items()}
    present = {path.name for path in FOLDER.iterdir()} - {MANIFEST.name}
    found = [f"{name} is not in the manifest" for name in sorted(present - set(wanted))]
    for name, digest in wanted.items():
        if name not in present:
            found.append(f"{name} is missing")
        elif hashlib.sha256((FOLDER / name).read_bytes()).hexdigest() != digest:
            found.append(f"{name} is not what was vendored")
    return found


if __name__ == "__main__":
    if "--check" in sys.argv[1:]:
        if wrong := problems():
            sys.exit("\n".join(wrong))
    else:
        refresh()

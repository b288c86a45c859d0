"""The core tests with the lowest version of everything that pyproject.toml gives a lower bound: `make test-bounds`.

Writes versions and counts to requirements/bounds.json, to which a test holds pyproject.toml. Nothing is written where a
test fails.
"""

from __future__ import annotations

import json
import platform
import re
import sys
from importlib.metadata import version
from pathlib import Path

from lane import CORE, READS_SOURCES, ROOT, run

REQUIREMENTS = ROOT / "requirements"
# What the dependencies with a bound are used for: the command line, plots, files, arrays, offloading, adapters.
PATHS = (
    *CORE,
    *(f"tests/{name}" for name in ("cli", "saving", "stale", "model/test_device.py", "prefix")),
)


def pinned() -> list[str]:
    """The packages that requirements/bounds.txt names, with those of the file that it includes."""
    text = "".join((REQUIREMENTS / name).read_text(encoding="utf-8") for name in ("floor.txt", "bounds.txt"))
    return sorted(re.findall(r"^([\w-]+)==", text, re.MULTILINE))


found = run(Path(sys.executable), PATHS, *READS_SOURCES)
if found.status:
    sys.exit(f"{found.counts}; requirements/bounds.json is as it was")
content = {
    "python": platform.python_version(),
    "versions": {name: version(name).partition("+")[0] for name in pinned()},
    "paths": PATHS,
    "tests": found.counts,
}
path = REQUIREMENTS / "bounds.json"
path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
print(f"{path.relative_to(ROOT)}: {found.counts}")

"""How a benchmark leaves its result: `results/NAME.json` with `{"meta": {...}, "rows": [flat objects]}`."""

import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
DOCS = Path(__file__).parent.parent / "docs"


def machine() -> dict[str, Any]:
    """What the numbers were seen on; ratios within one run are what to compare."""
    packages = {}
    for name in ("covey", "numpy", "torch", "onnxruntime", "executorch"):
        try:
            packages[name] = version(name)
        except ImportError:
            continue
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "python": sys.version.split()[0],
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "packages": packages,
    }


def write_report(name: str, meta: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write the result whole, and say where."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"meta": {**machine(), **meta}, "rows": list(rows)}, indent=1) + "\n")
    print(f"wrote {path}")
    return path


def read_rows(name: str) -> list[dict[str, Any]]:
    """The rows of the last result."""
    rows: list[dict[str, Any]] = json.loads((RESULTS / f"{name}.json").read_text())["rows"]
    return rows


def put_table(page: str, mark: str, lines: Sequence[str]) -> None:
    """Put lines between `<!-- mark -->` and `<!-- /mark -->` of a page in docs, so that no number is typed by hand."""
    path = DOCS / page
    before, _, rest = path.read_text().partition(f"<!-- {mark} -->")
    _, _, after = rest.partition(f"<!-- /{mark} -->")
    path.write_text(f"{before}<!-- {mark} -->\n" + "\n".join(lines) + f"\n<!-- /{mark} -->{after}")

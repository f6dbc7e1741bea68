"""The tables of docs/reliability.md, from the names of the tests and the results of the crash benchmark.

python -m tests.render_faults        writes them; a test compares
"""

import ast
import json
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "reliability.md"
# The files, which of their tests are faults, and what became of what had been acknowledged.
FILES = (
    ("edge/test_links.py", "test_fault_", "nothing"), ("server/test_faults.py", "test_fault_", "nothing"),
    ("server/test_disk_full.py", "test_", "nothing"), ("server/test_damage.py", "test_", "noticed, never averaged"),
)  # fmt: skip


def faults() -> str:
    """A row for each fault: the test's name as words, how it is tried, and what was lost."""
    lines = ["| what breaks | how it is tried | lost |", "| --- | --- | --- |"]
    for file, prefix, lost in FILES:
        found = [n for n in ast.parse((ROOT / "tests" / file).read_text()).body if isinstance(n, ast.FunctionDef)]
        for node in found:
            if node.name.startswith(prefix):
                how = (ast.get_docstring(node) or f"`tests/{file}`").partition("\n")[0].rstrip(".")
                lines.append(f"| {node.name.removeprefix(prefix).replace('_', ' ')} | {how} | {lost} |")
    return "\n".join(lines)


def kills() -> str:
    """The last full run of `make crash`."""
    data = json.loads((ROOT / "benchmarks" / "results" / "crash.json").read_text())
    columns = ("mode", "kills", "acknowledged", "duplicates", "refused", "versions", "lost", "counted_twice", "seconds")
    lines = ["| " + " | ".join(c.replace("_", " ") for c in columns) + " |", "|" + " --- |" * len(columns)]
    lines += ["| " + " | ".join(str(row[c]) for c in columns) + " |" for row in data["rows"]]
    return "\n".join(lines) + f"\n\nKilled at: {data['meta']['killed_at']}."


def rendered(text: str) -> str:
    """The page with its tables as they should be."""
    for name, table in (("crash", kills()), ("faults", faults())):
        pattern = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
        text = re.sub(pattern, lambda m, table=table: f"{m[1]}{table}\n{m[2]}", text, flags=re.DOTALL)  # type: ignore[misc]
    return text


if __name__ == "__main__":
    PAGE.write_text(rendered(PAGE.read_text()))

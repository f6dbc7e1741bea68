"""The documentation is tested: links resolve, options and make targets are explained, versions agree."""

import argparse
import json
import re
import tomllib
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from covey_shared import __version__
from covey_shared.cli import build_parser

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMAND_PAGE = {
    "export": "export.md",
    "bundle": "bundle.md",
    "keys": "bundle.md",
    "adapter": "bundle.md",
    "serve": "server.md",
    "enroll": "server.md",
    "admin": "server.md",
    "server": "server.md",
    "join": "client.md",
    "demo": "demo.md",
    "plan": "plan.md",
}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_resolve(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name} links to {target}, which does not exist"


def options(parser: argparse.ArgumentParser) -> Iterator[str]:
    """The long options of a command, and of its actions if it has some."""
    for action in parser._actions:
        yield from (o for o in action.option_strings if o.startswith("--") and o != "--help")
        if isinstance(action, argparse._SubParsersAction):
            for sub in action.choices.values():
                yield from options(sub)


@pytest.mark.parametrize("name", sorted(p.name for p in entry_points(group="covey.commands")))
def test_every_option_is_documented(name: str) -> None:
    parser, _ = build_parser()
    subparsers = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    text = (ROOT / "docs" / COMMAND_PAGE[name]).read_text()
    for option in options(subparsers.choices[name]):
        assert option in text, f"docs/{COMMAND_PAGE[name]} does not mention covey {name} {option}"


def test_readme_commands_exist() -> None:
    text = (ROOT / "README.md").read_text()
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"^ +make ([a-z-]+)", text, re.MULTILINE)) <= targets
    _, commands = build_parser()
    assert set(re.findall(r"^ +(?:\.venv/bin/)?covey ([a-z]+)", text, re.MULTILINE)) <= {
        name.split()[0] for name in commands
    }


def test_versions_agree() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == __version__
    assert f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_results_have_their_form() -> None:
    for path in (ROOT / "benchmarks" / "results").glob("*.json"):
        data = json.loads(path.read_text())
        assert set(data) == {"meta", "rows"}, path
        assert data["rows"], path
        for row in data["rows"]:
            assert not any(isinstance(v, dict | list) for v in row.values()), f"{path.name}: rows are flat"
        made_by = ROOT / "benchmarks" / path.stem  # a script, or a folder of them
        assert made_by.with_suffix(".py").exists() or made_by.is_dir(), f"{path.name} has no code that made it"

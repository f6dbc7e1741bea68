"""The folders are the packages: each resolves to this tree, and imports point one way only."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = {
    "covey_shared": "shared",
    "covey_edge": "edge_client",
    "covey_server": "cloud_server",
    "covey_export": "export",
}
HEAVY = {"torch", "transformers", "peft", "executorch", "onnx", "onnxruntime"}
# Unpickling runs code that the writer chose; no bytes of ours ever need it.
FORBIDDEN = {"pickle", "marshal", "shelve", "dill", "cloudpickle"}


def imports(path: Path, *, top_level_only: bool = False) -> Iterator[str]:
    """The top-level names that a file imports, anywhere or only when it is itself imported."""
    tree = ast.parse(path.read_text())
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield (node.module or "").partition(".")[0]


def sources(package: str) -> list[Path]:
    """All modules of a package."""
    return sorted((ROOT / PACKAGES[package] / package).rglob("*.py"))


@pytest.mark.parametrize("package", PACKAGES)
def test_package_is_ours(package: str) -> None:
    """`-I` keeps the working directory out of sys.path, so an installed stranger cannot hide behind it."""
    code = f"import importlib.util as u; print(u.find_spec({package!r}).origin)"
    run = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    found = Path(run.stdout.strip())
    assert found.parent == ROOT / PACKAGES[package] / package, (
        f"'{package}' resolves to {found}: another installed distribution owns that name; find it with "
        f"`pip show -f`, uninstall it, then reinstall this project"
    )


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_point_one_way(package: str) -> None:
    allowed = {package, "covey_shared"}
    for path in sources(package):
        for name in imports(path):
            assert name not in PACKAGES.keys() - allowed, f"{path}: {package} must not import {name}"


@pytest.mark.parametrize("package", PACKAGES)
def test_nothing_is_unpickled(package: str) -> None:
    for path in sources(package):
        assert not FORBIDDEN & set(imports(path)), f"{path} imports a module that runs code from data"


@pytest.mark.parametrize("package", ["covey_shared", "covey_server"])
def test_server_side_is_light(package: str) -> None:
    for path in sources(package):
        assert not HEAVY & set(imports(path)), f"{path}: {package} must run without {HEAVY & set(imports(path))}"


@pytest.mark.parametrize("package", PACKAGES)
def test_command_line_is_light(package: str) -> None:
    """`covey --help` must not wait for torch."""
    for path in sources(package):
        if path.name.endswith("cli.py"):
            assert not HEAVY & set(imports(path, top_level_only=True)), f"{path} imports a runtime at the top"

"""The client with ONNX Runtime must not need torch, transformers, peft or executorch: checked with them forbidden,
and, as a slow test, in a virtual environment that never had them."""

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from covey_shared.bundle import Bundle
from tests.helpers_edge_serving import serving

ROOT = Path(__file__).parent.parent.parent
HEAVY = ("torch", "transformers", "peft", "executorch", "onnx", "onnxscript", "safetensors", "torchao", "sympy")

FORBID = f"""
import sys

class Forbidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {HEAVY!r}:
            raise ModuleNotFoundError(f"{{name}} is forbidden here", name=name)
        return None

sys.meta_path.insert(0, Forbidden())
from covey_shared.cli import main
code = main(sys.argv[1:])
assert not set(sys.modules) & set({HEAVY!r})
sys.exit(code)
"""


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("the cat sat on the mat and the dog lay on the log; " * 60)
    return path


def join(python: Path | str, url: str, text: Path, tmp_path: Path, *more: str) -> dict[str, object]:
    """A whole task in an interpreter where nothing heavy can be imported; the result."""
    command = [
        str(python), "-I", "-c", FORBID, "join", url, "--data", str(text), "--state", str(tmp_path / "d"),
        "--cache", str(tmp_path / "c"), "--threads", "1", "--quiet", *more,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads((tmp_path / "d" / "result.json").read_text())
    return found


def test_joins_with_everything_heavy_forbidden(lm: Bundle, text: Path, tmp_path: Path) -> None:
    with serving(lm, tmp_path / "server") as server:
        result = join(sys.executable, server.url, text, tmp_path)
    assert (result["runtime"], result["rounds"]) == ("onnx", 2)


def test_classifier_with_everything_heavy_forbidden(classifier: Bundle, tmp_path: Path) -> None:
    data = tmp_path / "films.jsonl"
    data.write_text(
        "\n".join(
            json.dumps({"text": f"a very {w} film", "label": (w == "good" and 1) or 0}) for w in ["good", "bad"] * 9
        )
    )
    with serving(classifier, tmp_path / "server") as server:
        assert join(sys.executable, server.url, data, tmp_path)["rounds"] == 2


def test_help_is_light() -> None:
    """`covey join --help` imports no NumPy and no aiohttp of ours; other commands' extras may be missing."""
    code = (
        "import sys; from covey_edge.cli import JOIN; import argparse; JOIN.configure(argparse.ArgumentParser()); "
        "assert not {'numpy', 'aiohttp', 'onnxruntime', 'msgpack', 'tqdm'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_missing_runtime_is_named_with_its_command(lm: Bundle, text: Path, tmp_path: Path) -> None:
    """`auto` over a bundle none of whose runtimes is there, and one asked for by name."""
    blind = FORBID.replace("'torch',", "'torch', 'onnxruntime',", 1)
    with serving(lm, tmp_path / "server") as server:
        for runtime in ("auto", "onnx", "torch"):
            command = [
                sys.executable, "-c", blind, "join", server.url, "--data", str(text), "--quiet",
                "--state", str(tmp_path / runtime), "--runtime", runtime,
            ]  # fmt: skip
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            wanted = "onnx" if runtime == "auto" else runtime
            assert f"pip install 'covey[edge,{wanted}]'" in done.stderr
            assert done.stderr.count("\n") == 1
            assert done.returncode == 1


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_joins_in_an_environment_that_never_had_torch(lm: Bundle, text: Path, tmp_path: Path) -> None:
    """A fresh virtual environment with this project and its extras edge and onnx, by pip; also says how large it is."""
    place = tmp_path / "venv"
    venv.create(place, with_pip=True)
    python = place / "bin" / "python"
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    subprocess.run(
        [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-c", ROOT / "constraints.txt",
         f"{ROOT}[edge,onnx]"], check=True, env=environment,
    )  # fmt: skip
    for name in HEAVY:
        probe = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({name!r}) is not None)"
        if name not in ("sympy", "safetensors"):  # ONNX Runtime's; half a megabyte, never imported
            subprocess.run([python, "-I", "-c", probe], check=True)
    with serving(lm, tmp_path / "server") as server:
        result = join(python, server.url, text, tmp_path)
    assert result["rounds"] == 2
    packages = next((place / "lib").glob("python*")) / "site-packages"
    sizes = {p.name: size(p) for p in packages.iterdir() if p.is_dir()}
    tools = sum(v for k, v in sizes.items() if k.startswith(("pip", "setuptools")))
    runtime = sum(v for k, v in sizes.items() if k.startswith(("onnxruntime", "sympy", "mpmath", "flatbuffers")))
    whole = sum(sizes.values()) - tools
    print(f"\nedge client: {(whole - runtime) / 1e6:.0f} MB without a runtime, {whole / 1e6:.0f} MB with onnxruntime")
    assert whole - runtime < 150e6


def size(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())

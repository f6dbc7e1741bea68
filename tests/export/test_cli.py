"""`covey export` and `covey bundle` as one types them: what they print, and how they fail."""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from covey_export.cli import EXPORT
from covey_shared import cli
from covey_shared.bundle import Bundle


def covey(*args: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "covey_shared.cli", *args], capture_output=True, text=True, timeout=250, check=False
    )


def test_export_prints_the_bundle_and_what_to_type_next(llama_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    done = covey(
        "export", str(llama_model), "--out", str(out), "--targets", "onnx", "--rank", "2", "--batch", "2",
        "--seq-len", "8", "--target-modules", "q_proj,v_proj", "--alpha", "6", "--model-id", "tiny/llama",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "tiny/llama, LlamaForCausalLM" in done.stdout
    assert "n = 224 numbers" in done.stdout
    assert done.stdout.rstrip().endswith("covey serve TASK.toml")
    manifest = Bundle.open(out).manifest
    assert manifest.target_modules == ("q_proj", "v_proj")
    assert manifest.alpha == 6
    assert {t.scale for t in manifest.layout.tensors} == {3.0}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bundle"]


def test_a_signed_export(llama_model: Path, tmp_path: Path) -> None:
    assert cli.main(["keys", "new", str(tmp_path / "k")]) == 0
    out = tmp_path / "bundle"
    args = ["--out", str(out), "--targets", "torch", "--rank", "1", "--batch", "1", "--seq-len", "4"]
    done = covey("export", str(llama_model), *args, "--sign", str(tmp_path / "k"))
    assert done.returncode == 0, done.stderr
    key = (tmp_path / "k.pub").read_text().strip()
    assert f"signature  {key}" in done.stdout
    assert cli.main(["bundle", "verify", str(out), "--key", key]) == 0
    (tmp_path / "k").chmod(0o644)
    refused = covey("export", "nothing", "--out", str(tmp_path / "other"), "--sign", str(tmp_path / "k"))
    assert refused.returncode == 1
    assert "can be read by others" in refused.stderr


def test_list_targets(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["export", "--list-targets"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    for expected in ("onnx\n", "executorch\n", "torch\n", "write it here  yes", "CPU", "XnnpackBackend", "phones"):
        assert expected in said


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (("./nowhere", "--out", "{}"), "there is no folder ./nowhere"),
        (("m", "--out", "{}", "--task", "causal"), "did you mean causal-lm?"),
        (("m", "--out", "{}", "--rank", "0"), "--rank is 0; it must be at least 1"),
        (("m", "--out", "{}", "--targets", "onnx,jax"), "'jax' is no target that covey exports"),
        (("m", "--out", "/proc/bundle"), "/proc"),
    ],
)
def test_wrong_commands(
    args: tuple[str, ...], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = cli.main(["export", *(a.format(tmp_path / "b") for a in args)])
    error = capsys.readouterr().err
    assert code == 1
    assert error.startswith("covey export: ")
    assert sentence in error
    assert len(error.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def parsed(*args: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    EXPORT.configure(parser)
    return parser.parse_args(["m", "--out", "b", *args])


def test_options_of_what_trains() -> None:
    args = parsed(
        "--ranks", "4, 8,16", "--rank-of", "q_proj=16,mlp.up=4", "--block", "-1", "--train-full", "norms,head"
    )
    assert args.ranks == (4, 8, 16)
    assert args.rank_of == (("q_proj", 16), ("mlp.up", 4))
    assert args.block == (-1,)
    assert args.train_full == ("norms", "head")
    images = parsed("--image", "3x32x24", "--image-mean", "0.5,.25,0", "--labels", "cat,dog")
    assert (images.image, images.image_mean, images.labels) == ((3, 32, 24), (0.5, 0.25, 0.0), ("cat", "dog"))


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (("--ranks", "4,big"), "argument --ranks: '4,big' is not of the form whole numbers with commas between"),
        (("--rank-of", "q_proj"), "'q_proj' is not of the form NAME=RANK with commas between, q_proj=16,mlp=4 say"),
        (("--image", "3x32"), "'3x32' is not of the form channels x height x width, 3x32x32 say"),
        (("--image-std", "a"), "'a' is not of the form numbers with commas between"),
        (("--rank", "4", "--ranks", "4,8"), "not allowed with argument --rank"),
    ],
)
def test_options_that_are_not_of_their_form(
    args: tuple[str, ...], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parsed(*args)
    assert sentence in capsys.readouterr().err


def test_existing_place_is_refused_at_once(llama: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["export", "anything", "--out", str(llama.folder)]) == 1
    assert "exists; choose another --out, or replace it with --force" in capsys.readouterr().err


def test_bundle_show(llama: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bundle", "show", str(llama.folder)]) == 0
    text = capsys.readouterr().out
    for expected in (
        "LlamaForCausalLM",
        "model.layers.0.self_attn.q_proj",
        "onnx/weights.bin",
        "executorch/model.pte",
        "peak memory",
        llama.digest[:12],
    ):
        assert expected in text


def test_bundle_verify(llama: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bundle", "verify", str(llama.folder)]) == 0
    assert "are as the manifest states" in capsys.readouterr().out
    copy = Path(shutil.copytree(llama.folder, tmp_path / "copy"))
    (copy / "onnx/eval.onnx").unlink()
    assert cli.main(["bundle", "verify", str(copy)]) == 1
    assert "lacks the file onnx/eval.onnx" in capsys.readouterr().err
    assert cli.main(["bundle", "verify", str(tmp_path / "none")]) == 1
    assert "is not a bundle" in capsys.readouterr().err


def test_commands_import_light() -> None:
    code = (
        "import sys, covey_export.cli as c, argparse\n"
        "c.EXPORT.configure(argparse.ArgumentParser())\n"
        "import covey_shared.show, covey_export.recipe, covey_export.place\n"
        "print([m for m in ('torch', 'transformers', 'peft', 'onnx', 'tqdm') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_a_proof_of_onnx_imports_no_torch(llama: Bundle) -> None:
    """So that the memory that it measures is a device's."""
    code = (
        "import sys\nfrom pathlib import Path\nfrom covey_export.runtimes import load_library, open_role\n"
        "import covey_export.probe\nload_library('onnx')\n"
        f"open_role('onnx', Path({str(llama.folder)!r}), {llama.manifest.graphs['onnx']!r}, 'train')\n"
        "print([m for m in ('torch', 'transformers', 'peft') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"

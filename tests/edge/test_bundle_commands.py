"""`covey bundle verify`, `train`, `generate` and `classify` as one types them, on real graphs."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from covey_edge.adapters import read_adapter
from covey_edge.trainers import RUNTIMES, missing_modules
from covey_shared import cli
from covey_shared.bundle import Bundle
from covey_shared.bundle_signature import SIGNATURE, sign_folder
from covey_shared.keys import generate

INSTALLED = [r for r in RUNTIMES if not missing_modules(r)]
TEXT = "the cat sat on the mat and the dog lay on the log; a bird sang in the old tree by the river.\n"


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (tmp_path / "text.txt").write_text(TEXT * 40)
    return tmp_path / "text.txt"


@pytest.fixture
def records(tmp_path: Path) -> Path:
    path = tmp_path / "r.jsonl"
    rows = [{"text": f"a very {w} film", "label": i % 2} for i, w in enumerate(["bad", "good"] * 20)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def images(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 60)
    pixels = rng.integers(0, 80, (60, 8, 8, 3)) + 150 * labels[:, None, None, None]
    np.savez(tmp_path / "images.npz", images=pixels.astype(np.uint8), labels=labels)
    return tmp_path / "images.npz"


def covey(*args: object) -> int:
    return cli.main(["bundle", *map(str, args)])


def result_of(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "result.json").read_text())
    return found


def refusal(capsys: pytest.CaptureFixture[str], code: int) -> str:
    """The last line of a command that failed, which is its one sentence."""
    assert code == 1
    return capsys.readouterr().err.strip().splitlines()[-1]


# --- verify


def test_verify_on_every_runtime(lm: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert covey("verify", lm.folder, "--run", "--threads", 1) == 0
    said = capsys.readouterr().out
    assert "signature   none" in said
    assert f"start       {lm.manifest.layout.size:,} finite numbers" in said
    assert said.count("trains: loss ") == len(INSTALLED)


def test_verify_opens_every_kind_of_bundle(
    classifier: Bundle, pictures: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    for bundle in (classifier, pictures):
        assert covey("verify", bundle.folder, "--run") == 0
        assert "trains: loss " in capsys.readouterr().out


def test_verify_refuses(lm: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy, mine, theirs = tmp_path / "b", generate(), generate()
    shutil.copytree(lm.folder, copy)
    assert "is not signed" in refusal(capsys, covey("verify", copy, "--key", mine.public.text))
    sign_folder(copy, theirs)
    assert "is required" in refusal(capsys, covey("verify", copy, "--key", mine.public.text))
    sign_folder(copy, mine)
    assert covey("verify", copy, "--key", mine.public.text) == 0
    assert "not tried" in capsys.readouterr().out or len(INSTALLED) == 3
    weights = copy / "onnx" / "weights.bin"
    data = weights.read_bytes()
    weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert "another digest" in refusal(capsys, covey("verify", copy))
    weights.write_bytes(data)
    manifest = (copy / "manifest.json").read_text()
    (copy / "manifest.json").write_text(manifest.replace('"seed": 0', '"seed": 1'))
    assert "does not hold" in refusal(capsys, covey("verify", copy))
    (copy / SIGNATURE).write_bytes(b"\0")
    assert "damaged" in refusal(capsys, covey("verify", copy))
    assert "is not a bundle" in refusal(capsys, covey("verify", tmp_path / "none"))


# --- train


@pytest.mark.parametrize("runtime", INSTALLED)
def test_train(runtime: str, lm: Bundle, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    code = covey("train", lm.folder, "--data", text, "--out", out, "--steps", 20, "--lr", 0.02, "--threads", 1,
                 "--runtime", runtime)  # fmt: skip
    said = capsys.readouterr()
    assert code == 0, said.err
    result = result_of(out)
    assert result["loss_after"] < result["loss_before"] - 0.05
    assert (result["steps"], len(result["losses"]), result["runtime"]) == (20, 20, runtime)
    assert result["tokens_per_second"] > 0
    assert result["peak_bytes"] > 1e7
    assert "bits per byte" in said.out
    assert "step 20/20  loss " in said.err
    assert "the same command goes on from there" in said.err
    flat, peft = read_adapter(out / "adapter.flat", lm), read_adapter(out, lm)
    assert flat.vector.tobytes() == peft.vector.tobytes()


def test_train_goes_on_to_more_steps_with_the_same_bits(lm: Bundle, text: Path, tmp_path: Path) -> None:
    def train(out: str, steps: int, *more: object) -> bytes:
        assert covey("train", lm.folder, "--data", text, "--out", tmp_path / out, "--steps", steps, "--threads", 1,
                     "--runtime", "onnx", *more) == 0  # fmt: skip
        return (tmp_path / out / "adapter.flat").read_bytes()

    straight = train("a", 30)
    assert train("b", 11) != straight
    assert train("b", 30) == straight
    assert train("b", 30) == straight  # again, with nothing left to do
    assert len(result_of(tmp_path / "b")["losses"]) == 30
    assert train("b", 11, "--force") == train("c", 11)


def test_a_killed_training_ends_with_the_same_bits(lm: Bundle, text: Path, tmp_path: Path) -> None:
    args = ["train", lm.folder, "--data", text, "--steps", 300, "--threads", 1, "--runtime", "onnx", "--save-every", 1]
    out = tmp_path / "killed"
    process = start(*args, "--out", out)
    wait_for(out / ".covey" / "training", process)
    process.kill()
    process.communicate()
    again = start(*args, "--out", out)
    _, err = again.communicate(timeout=120)
    assert again.returncode == 0, err
    assert "going on after step" in err
    assert covey(*args[:-2], "--out", tmp_path / "straight") == 0
    assert (out / "adapter.flat").read_bytes() == (tmp_path / "straight" / "adapter.flat").read_bytes()


def test_ctrl_c_saves_and_says_so(lm: Bundle, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["train", lm.folder, "--data", text, "--steps", 4000, "--threads", 1, "--runtime", "onnx"]
    process = start(*args, "--out", tmp_path / "out")
    wait_for(tmp_path / "out" / ".covey" / "training", process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, ""), err
    assert "of 4000; the same command goes on from there" in err
    other = covey(*args[:-2], "--runtime", "onnx", "--out", tmp_path / "out", "--lr", "0.1")
    assert "holds a run with other settings, data or bundle" in refusal(capsys, other)
    fewer = covey("train", lm.folder, "--data", text, "--steps", 1, "--runtime", "onnx", "--out", tmp_path / "out")
    assert "ask for more --steps, or use --force" in refusal(capsys, fewer)


def start(*args: object) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "covey_shared.cli", "bundle", *map(str, args)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL) and None,
    )  # fmt: skip


def wait_for(path: Path, process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_train_a_lower_rank_and_from_an_adapter(lm: Bundle, text: Path, tmp_path: Path) -> None:
    common = ["train", lm.folder, "--data", text, "--steps", 6, "--threads", 1, "--runtime", "onnx"]
    assert covey(*common, "--rank", 1, "--out", tmp_path / "one") == 0
    low = read_adapter(tmp_path / "one", lm)
    assert low.layout == lm.manifest.layout.at_rank(1) != lm.manifest.layout
    assert covey(*common, "--adapter", tmp_path / "one", "--out", tmp_path / "two") == 0
    first, second = result_of(tmp_path / "one"), result_of(tmp_path / "two")
    assert (first["rank"], second["rank"]) == (1, 1)
    assert second["loss_before"] == pytest.approx(first["loss_after"], rel=1e-6)


def test_train_on_records_and_on_images(
    classifier: Bundle, pictures: Bundle, records: Path, images: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    for bundle, data, unit in ((classifier, records, "tokens/s"), (pictures, images, "images/s")):
        out = tmp_path / data.stem
        assert covey("train", bundle.folder, "--data", data, "--steps", 300, "--lr", 0.01, "--out", out) == 0
        assert result_of(out)["accuracy_after"] > 0.9
        assert unit in capsys.readouterr().out
        assert covey("classify", bundle.folder, "--adapter", out, "--data", data) == 0
        assert "right " in capsys.readouterr().out


def test_train_draws_a_plot(lm: Bundle, text: Path, tmp_path: Path) -> None:
    if importlib.util.find_spec("matplotlib") is None:
        pytest.skip("matplotlib is not installed")
    args = ["train", lm.folder, "--data", text, "--steps", 3, "--out", tmp_path / "o", "--runtime", "onnx"]
    assert covey(*args, "--plot", tmp_path / "loss.png") == 0
    assert (tmp_path / "loss.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["--data", "{}/none"], "there is nothing at"),
        (["--data", "{}/empty"], "holds no text"),
        (["--data", "{}/text.txt", "--rank", "7"], "has no rank 7, it has 1, 2"),
        (["--data", "{}/text.txt", "--steps", "0"], "--steps must be at least 1"),
        (["--data", "{}/text.txt", "--lr", "-1"], "--learning-rate must be a positive number"),
        (["--data", "{}/text.txt", "--holdout", "0.9"], "--holdout is a share"),
        (["--data", "{}/text.txt", "--lr", "1e30"], "became no number"),
        (["--data", "{}/text.txt", "--provider", "quantum"], "has no provider 'quantum'"),
        (["--data", "{}/text.txt", "--out", "{}/full"], "is not a folder that covey bundle train made"),
        (["--data", "{}/text.txt", "--adapter", "{}/none"], "there is no adapter at"),
    ],
)
def test_train_refuses(
    args: list[str], sentence: str, lm: Bundle, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "diary").write_text("mine")
    place = [] if "--out" in args else ["--out", tmp_path / "out"]
    runtime = ["--runtime", "onnx", "--threads", 1]
    assert sentence in refusal(capsys, covey("train", lm.folder, *(a.format(tmp_path) for a in args), *place, *runtime))
    assert (tmp_path / "full" / "diary").read_text() == "mine"
    assert "1e30" in args or not (tmp_path / "out").exists()


# --- generate and classify


def test_generate(lm: Bundle, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert (
        covey("train", lm.folder, "--data", text, "--steps", 60, "--lr", 0.03, "--out", out, "--runtime", "onnx") == 0
    )
    capsys.readouterr()
    use = ["generate", lm.folder, "--prompt", "the cat ", "--max-tokens", 30, "--threads", 1]
    texts = []
    for runtime in INSTALLED:
        assert covey(*use, "--adapter", out, "--runtime", runtime) == 0
        texts.append(capsys.readouterr())
    assert len({said.out for said in texts}) == 1
    assert texts[0].out.startswith("the cat ")
    assert "so the model saw the last 32 at a time" in texts[0].err
    assert covey(*use) == 0
    assert capsys.readouterr().out != texts[0].out
    draw = [*use, "--adapter", out / "adapter.flat", "--temperature", 0.8, "--top-k", 20, "--top-p", 0.9]
    assert covey(*draw, "--samples", 3, "--seed", 1) == 0
    drawn = capsys.readouterr().out
    assert [f"[{i}] the cat " in drawn for i in (1, 2, 3)] == [True] * 3
    assert covey(*draw, "--samples", 3, "--seed", 1) == 0
    assert capsys.readouterr().out == drawn


def test_use_refuses(
    lm: Bundle, classifier: Bundle, pictures: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "use covey bundle classify" in refusal(capsys, covey("generate", classifier.folder))
    assert "use covey bundle classify" in refusal(capsys, covey("generate", pictures.folder))
    assert "use covey bundle generate" in refusal(capsys, covey("classify", lm.folder, "--text", "x"))
    assert "say what to classify" in refusal(capsys, covey("classify", classifier.folder))
    assert "--samples 1 to the bundle's 4 rows" in refusal(capsys, covey("generate", lm.folder, "--samples", 5))
    assert "there is no adapter" in refusal(capsys, covey("generate", lm.folder, "--adapter", tmp_path / "x"))


def test_classify_texts(classifier: Bundle, records: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert covey("train", classifier.folder, "--data", records, "--steps", 300, "--lr", 0.01, "--out", out) == 0
    capsys.readouterr()
    texts = [
        f"a {w} film" for w in ("very good", "very bad", "very good", "very bad", "very good")
    ]  # more than a batch
    args = [arg for text in texts for arg in ("--text", text)]
    assert covey("classify", classifier.folder, "--adapter", out, *args) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [classifier.manifest.labels[i] for i in (1, 0, 1, 0, 1)]
    assert lines[0].endswith("a very good film")


def test_a_board_needs_neither_torch_nor_the_export(lm: Bundle, text: Path, tmp_path: Path) -> None:
    """With these imports forbidden everything of a board's part still runs."""
    code = f"""
import sys
class Forbid:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers", "peft", "onnx", "executorch", "aiohttp"):
            raise ModuleNotFoundError(f"{{name}} is forbidden here", name=name)
sys.meta_path.insert(0, Forbid())
from covey_shared.cli import main
bundle, data, out = {str(lm.folder)!r}, {str(text)!r}, {str(tmp_path / "out")!r}
for args in (["show", bundle], ["verify", bundle, "--run"],
             ["train", bundle, "--data", data, "--steps", "2", "--out", out],
             ["generate", bundle, "--adapter", out, "--prompt", "a", "--max-tokens", "3"]):
    assert main(["bundle", *args]) == 0, args
for target in ("a.flat", "b.onnx_adapter", "c"):
    assert main(["adapter", "convert", out, out + target, "--bundle", bundle]) == 0
"""
    env = {**os.environ, "COVEY_VERBOSE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=env, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert "opens" not in done.stdout
    assert done.stdout.count("trains: loss ") == 1

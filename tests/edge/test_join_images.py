"""`covey join` on a task of images, against the real server: from an .npz to an adapter that PEFT loads."""

import json
from pathlib import Path

import numpy as np
import pytest

from covey_shared.bundle import Bundle
from covey_shared.cli import main
from tests.helpers_server import served, status_of

TASK = """
[task]
name = "test"
bundle = "{}"
rounds = 2
seed = 7
[round]
target = 1
retry_s = 0.05
[client]
steps = 30
learning_rate = 0.01
"""


@pytest.mark.filterwarnings("ignore")  # peft, at the end
def test_a_whole_task(pictures: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Dark and light images: all held-out ones are told apart in the end, and each was counted once."""
    rng = np.random.default_rng(0)
    classes = np.arange(50) % 2
    images = rng.integers(0, 120, (50, 8, 8, 3)) + 130 * classes[:, None, None, None]
    data, task, events = tmp_path / "d.npz", tmp_path / "task.toml", tmp_path / "events.jsonl"
    np.savez(data, images=images.astype(np.uint8), labels=np.array(["dark", "light"])[classes])
    task.write_text(TASK.format(pictures.folder))
    with served(task, publish=tmp_path / "adapter") as server:
        places = ["--state", tmp_path / "d", "--cache", tmp_path / "cache", "--threads", 1, "--name", "d"]
        more = ["--eval-batches", 0, "--holdout", 0.22, "--save-heldout", tmp_path / "held.npz", "--events", events]
        code = main(["join", *map(str, [server.url, "--data", data, "--quiet", *places, *more])])
        status = status_of(server.url)
    assert code == 0, capsys.readouterr().err
    result = json.loads((tmp_path / "d/result.json").read_text())
    assert (result["examples"], result["heldout"], result["rounds"]) == (39, 11, 2)
    assert result["tokens"] == 2 * 30 * 4
    assert result["accuracy_after"] == 1.0
    assert result["loss_after"] < result["loss_before"]
    assert result["bits_per_byte_after"] is None
    evaluated = [e for e in map(json.loads, events.read_text().splitlines()) if e["event"] == "evaluated"]
    assert [e["tokens"] for e in evaluated] == [11, 11, 11], "three batches of four, the last filled up"
    assert status["state"] == "done"
    with np.load(tmp_path / "held.npz") as held:
        assert held["pixel_values"].shape == (12, 3, 8, 8)
        inputs, labels = held["pixel_values"][:11], held["labels"][:11]
    assert published_accuracy(tmp_path / "adapter/latest", inputs, labels) == 1.0


def published_accuracy(folder: Path, inputs: np.ndarray, labels: np.ndarray) -> float:
    """The adapter in PEFT's own hands, on the network that the bundle was made of."""
    import torch
    from peft import PeftModel

    from covey_export.resnets import build

    model = PeftModel.from_pretrained(build("resnet8", labels=2), folder).eval()
    with torch.no_grad():
        logits = model(pixel_values=torch.from_numpy(inputs)).logits
    return float((logits.argmax(1).numpy() == labels).mean())


def test_text_is_no_data_for_images(pictures: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task = tmp_path / "task.toml"
    task.write_text(TASK.format(pictures.folder))
    (tmp_path / "a.txt").write_text("hello")
    with served(task) as server:
        arguments = [server.url, "--data", tmp_path / "a.txt", "--state", tmp_path / "d", "--cache", tmp_path / "cache"]
        assert main(["join", *map(str, arguments)]) == 1
    assert "no .npz file and no folder of images: this task needs images" in capsys.readouterr().err

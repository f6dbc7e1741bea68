"""The JVM client in more kinds of tasks, each beside the same with Python clients alone.

A classifier with a WordPiece tokenizer, a language model with a BPE tokenizer whose devices fuse two adapters, and own
tensors in a vault.

android_demo/check.sh compiles the client and runs this; COVEY_CLASSPATH says where the classes are.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from covey_edge import vault
from covey_shared.bundle import Bundle
from tests.android.test_android_client import Jvm, difference
from tests.helpers_export import recipe_of, run_export, save_model
from tests.helpers_shared import vectors
from tests.test_end_to_end import Run, covey, finish, texts  # noqa: F401  (a fixture)

pytest.importorskip("executorch", reason="the JVM client trains with ExecuTorch")
pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        not os.environ.get("COVEY_CLASSPATH"), reason="the JVM client is compiled and tested by android_demo/check.sh"
    ),
]
TARGETS = ("onnx", "executorch")
WORDS = ["the", "cat", "and", "dog", "w1", "w2", "w3", "w4", "good", "bad", "film", "a", "b", "c"]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT with two classes."""
    folder = tmp_path_factory.mktemp("classifier")
    model = save_model("bert", folder / "model", num_labels=2)
    run_export(recipe_of("bert", model, targets=TARGETS), folder / "bundle")
    return folder / "bundle"


@pytest.fixture(scope="module")
def spelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with a byte-level BPE tokenizer and room for a second adapter."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("spelled")
    model = save_model("llama", folder / "model", vocab_size=440)
    backend = Tokenizer.from_str(json.dumps(vectors("tokenizers/llama3.json")["tokenizer"]))
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|eot|>").save_pretrained(model)
    run_export(recipe_of("llama", model, targets=TARGETS, seq_len=16, frozen_rank=2), folder / "bundle")
    return folder / "bundle"


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[list[Run]]:
    made: list[Run] = []
    yield made
    for process in (p for run in made for p in run.processes if p.poll() is None):
        process.kill()
        process.communicate()


def make(runs: list[Run], folder: Path, bundle: Path, data: Path, more: str, clients: int = 2) -> Run:
    """A run whose task has `more` in it."""
    runs.append(Run(folder, bundle, data, clients))
    run = runs[-1]
    run.task.write_text(run.task.read_text().replace("learning_rate = 0.003", "learning_rate = 0.02") + more)
    return run


def beside_python(python: Run, jvm: Run) -> Jvm:
    """The same task twice: ada in Python, and ada on the JVM; grace is a Python client both times."""
    server = python.serve()
    for process in (python.join("ada", "executorch"), python.join("grace", "onnx"), server):
        finish(process)
    server = jvm.serve()
    client = Jvm(jvm, "ada").start()
    witness = jvm.join("grace", "onnx")
    client.finish()
    for process in (witness, server):
        finish(process)
    assert [line.split("status=")[1] for line in client.lines("uploaded")] == ["accepted"] * 3
    return client


def same_adapter(bundle: Path, python: Run, jvm: Run, tolerance: float) -> None:
    loaded = Bundle.open(bundle)
    start = loaded.manifest.layout.split(loaded.start(7))
    expected, got = python.adapter(), jvm.adapter()
    apart = difference(expected, got, {k: start.get(k, np.zeros_like(expected[k])) for k in expected})
    print(f"JVM and Python differ by {apart:.1e} of the way")
    assert apart < tolerance


def losses(run: Run, name: str, kind: str) -> list[float]:
    """A Python client's evaluations of one kind."""
    return [e["loss"] for e in run.events(name) if e["event"] == "evaluated" and e["kind"] == kind]


def logged(client: Jvm, event: str) -> list[float]:
    """A JVM client's."""
    return [float(line.partition("loss=")[2].split(",")[0].rstrip(")")) for line in client.lines(event)]


def test_a_classifier_with_a_tokenizer_of_its_own(classifier: Path, runs: list[Run], tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    for name in ("ada", "grace"):
        (tmp_path / "data" / name).mkdir(parents=True)
        rows = [(" ".join(rng.choice(WORDS, 6)), int(rng.integers(2))) for _ in range(40)]
        lines = [json.dumps({"text": ("good " if y else "bad ") + x, "label": y}) for x, y in rows]
        (tmp_path / "data" / name / "records.jsonl").write_text("\n".join(lines) + "\n")
    python, jvm = (make(runs, tmp_path / n, classifier, tmp_path / "data", "") for n in ("python", "jvm"))
    client = beside_python(python, jvm)
    assert np.allclose(logged(client, "evaluated"), losses(python, "ada", "global"), rtol=1e-3)
    same_adapter(classifier, python, jvm, 1e-3)


@pytest.mark.parametrize("how", ["factorwise", "concatenated"])
def test_devices_that_fuse_two_adapters(
    how: str,
    spelled: Path,
    runs: list[Run],
    texts: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    more = f'[strategy]\nname = "fdlora"\nfusion = "{how}"\nsync_every = 2\n'
    python, jvm = (make(runs, tmp_path / n, spelled, texts, more) for n in ("python", "jvm"))
    client = beside_python(python, jvm)
    same_adapter(spelled, python, jvm, 1e-3)
    personal = losses(python, "ada", "personal")
    assert len(personal) == 3, "of versions 1 to 3"
    assert np.allclose(logged(client, "personal"), personal, rtol=1e-3)
    assert np.allclose(logged(client, "evaluated"), losses(python, "ada", "global"), rtol=1e-3)


def test_devices_of_two_cohorts(
    spelled: Path,
    runs: list[Run],
    texts: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    """Ada has the copies of cohort 1 and grace those of cohort 0, which are published."""
    more = '[strategy]\nname = "cohorts"\nsmallest = 1\npins = "ada=1 grace=0"\n'
    python, jvm = (make(runs, tmp_path / n, spelled, texts, more) for n in ("python", "jvm"))
    client = beside_python(python, jvm)
    same_adapter(spelled, python, jvm, 1e-3)
    assert np.allclose(logged(client, "evaluated"), losses(python, "ada", "global"), rtol=1e-3)


def test_own_tensors_go_to_the_next_device_through_the_vault(
    spelled: Path,
    runs: list[Run],
    texts: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    """JVM client, then Python client, then JVM client, each with a key and a state of its own, and one passphrase."""
    run = make(runs, tmp_path / "run", spelled, texts, '[personal]\npolicy = "fedsa"\n', clients=1)
    server = run.serve()
    words = "a passphrase that is long"
    (tmp_path / "words").write_text(words + "\n")
    named = ("--passphrase", words, "--vault-name", "ada")
    first = Jvm(run, "ada").start(*named, "--once", "true")
    first.finish()
    task = next(line for line in first.lines("vault")).split()[1]
    python = covey(
        "join", run.url, "--data", str(texts / "grace"), "--name", "grace", "--runtime", "onnx", "--threads", "1",
        "--state", str(tmp_path / "grace"), "--cache", str(run.folder / "cache"), "--once", "--eval-batches", "4",
        "--vault-passphrase", str(tmp_path / "words"), "--vault-name", "ada",
    )  # fmt: skip
    run.processes.append(python)
    kept = stored(run, words, task)
    finish(python)
    assert stored(run, words, task).sequence == 1
    assert stored(run, words, task).content != kept.content, "Python went on from the JVM client's"
    last = Jvm(run, "alan").start(*named)
    last.finish()
    assert any("those of the vault" in line for line in last.lines("notice"))
    finish(server)
    assert kept.content


def stored(run: Run, words: str, task: str) -> vault.Kept:
    """The vault that the server has, opened."""
    (path,) = (p for p in (run.folder / "data").rglob("vaults/**/*") if p.is_file())
    return vault.open_vault(path.read_bytes(), words, task, "ada")

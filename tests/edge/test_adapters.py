"""An adapter in three forms: every bit survives, and what is not of this bundle is refused with a sentence."""

import contextlib
import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from covey_edge import adapters
from covey_edge.adapters import Adapter, read_adapter, write_adapter
from covey_edge.data import Batch
from covey_edge.trainers import open_trainer
from covey_shared import cli, peft_folder
from covey_shared.bundle import Bundle
from covey_shared.errors import CoveyError, LayoutError, UsageError
from covey_shared.layout import Vector
from tests.helpers_server import make_bundle

NAMES = {"flat": "a.flat", "peft": "folder", "onnx": "a.onnx_adapter"}


def some(bundle: Bundle, rank: int = 0) -> Adapter:
    """Values with odd bits: negative zero, the smallest denormal, the largest number."""
    layout = bundle.manifest.layout.at_rank(rank) if rank else bundle.manifest.layout
    vector = np.random.default_rng(0).standard_normal(layout.size).astype(np.float32)
    vector[:3] = [-0.0, 1e-45, 3.4e38]
    return Adapter(layout, vector, 7)


def bits(vector: Vector) -> bytes:
    return vector.tobytes()


@pytest.mark.parametrize("rank", [0, 1])
def test_every_bit_survives_the_way_through_all_forms(rank: int, lm: Bundle, tmp_path: Path) -> None:
    adapter = some(lm, rank)
    for form, name in NAMES.items():
        assert adapters.form_for(tmp_path / name) == form
        write_adapter(adapter, tmp_path / name, lm, form)
        back = read_adapter(tmp_path / name, lm)
        assert bits(back.vector) == bits(adapter.vector)
        assert back.layout == adapter.layout
        assert back.version == (-1 if form == "flat" else 7)
    assert len(list(tmp_path.iterdir())) == 3


def test_the_command_converts_each_form_into_each(
    lm: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = tmp_path / "a.flat"
    write_adapter(some(lm), first, lm, "flat")
    way = ["b", "c.onnx_adapter", "d.flat", "e.onnx_adapter", "f", "g.flat"]
    for source, target in zip(["a.flat", *way], way, strict=False):
        args = ["adapter", "convert", str(tmp_path / source), str(tmp_path / target), "--bundle", str(lm.folder)]
        assert cli.main(args) == 0, capsys.readouterr().err
    assert (tmp_path / "g.flat").read_bytes() == first.read_bytes()
    assert "from peft to flat" in capsys.readouterr().out
    assert cli.main(["adapter", "show", str(tmp_path / "f"), "--bundle", str(lm.folder)]) == 0
    assert "lora_A" in capsys.readouterr().out


def test_wrong_commands(lm: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_adapter(some(lm), tmp_path / "a.flat", lm, "flat")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "diary.txt").write_text("mine")
    for source, target, sentence in (
        ("none.flat", "b", "there is no adapter at"),
        ("a.flat", "b.pt", "'.pt' names no form"),
        ("a.flat", "full", "is no adapter's folder"),
        ("full", "b.flat", "it has no adapter_model.safetensors"),
        ("full/diary.txt", "b.flat", "is no adapter: it is neither"),
    ):
        args = ["adapter", "convert", str(tmp_path / source), str(tmp_path / target), "--bundle", str(lm.folder)]
        assert cli.main(args) == 1
        error = capsys.readouterr().err
        assert error.startswith("covey adapter convert: ")
        assert sentence in error
        assert error.count("\n") == 1


@pytest.mark.parametrize("form", NAMES)
def test_an_adapter_of_another_bundle(form: str, lm: Bundle, classifier: Bundle, tmp_path: Path) -> None:
    write_adapter(some(classifier), tmp_path / NAMES[form], classifier, form)
    with pytest.raises(LayoutError):
        read_adapter(tmp_path / NAMES[form], lm)


def test_another_alpha_is_another_model(lm: Bundle, tmp_path: Path) -> None:
    write_adapter(some(lm), tmp_path / "f", lm, "peft")
    path = tmp_path / "f" / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "lora_alpha": 64}))
    with pytest.raises(LayoutError, match=r"lora_alpha 64.*would be another model"):
        read_adapter(tmp_path / "f", lm)
    path.write_text("[" * 100_000)
    with pytest.raises(UsageError, match="is not an adapter's configuration"):
        read_adapter(tmp_path / "f", lm)


@pytest.mark.parametrize("kind", ["<f2", "bf16"])
def test_half_precision_weights_are_read_exactly(kind: str, lm: Bundle, tmp_path: Path) -> None:
    write_adapter(some(lm), tmp_path / "f", lm, "peft")
    path = tmp_path / "f" / "adapter_model.safetensors"
    tensors = {k: np.clip(v, -100, 100) for k, v in load_file(path).items()}
    if kind == "bf16":
        torch = pytest.importorskip("torch")
        from safetensors.torch import save_file as save_torch

        halves = {k: torch.from_numpy(v).bfloat16() for k, v in tensors.items()}
        save_torch(halves, path)
        expected = {k: v.float().numpy() for k, v in halves.items()}
    else:
        save_file({k: v.astype(kind) for k, v in tensors.items()}, path)
        expected = {k: v.astype(kind).astype(np.float32) for k, v in tensors.items()}
    assert bits(read_adapter(tmp_path / "f", lm).vector) == bits(lm.manifest.layout.join(expected))


def test_not_a_number_is_of_no_use(lm: Bundle, tmp_path: Path) -> None:
    adapter = some(lm)
    adapter.vector[5] = np.nan
    write_adapter(adapter, tmp_path / "a.flat", lm, "flat")
    with pytest.raises(UsageError, match="not numbers"):
        read_adapter(tmp_path / "a.flat", lm)


def test_without_a_peft_configuration_the_folder_has_the_base_models_names(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    bundle.manifest.files.pop(peft_folder.BUNDLED_CONFIG, None)
    adapter = Adapter(bundle.manifest.layout, bundle.start(3), 2)
    for form, name in NAMES.items():
        write_adapter(adapter, tmp_path / name, bundle, form)
        assert bits(read_adapter(tmp_path / name, bundle).vector) == bits(adapter.vector)
    assert sorted(p.name for p in (tmp_path / "folder").iterdir()) == ["covey.json", "weights.safetensors"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(form=st.sampled_from(["flat", "onnx", "peft"]), cut=st.integers(0, 400), flip=st.integers(0, 4000))
def test_damaged_files_are_refused(form: str, cut: int, flip: int, lm: Bundle, tmp_path: Path) -> None:
    path = tmp_path / NAMES[form]
    shutil.rmtree(path, ignore_errors=True)
    adapter = some(lm)
    write_adapter(adapter, path, lm, form)
    file = path / "adapter_model.safetensors" if form == "peft" else path
    data = bytearray(file.read_bytes())
    data[flip % len(data)] ^= 0x55
    file.write_bytes(data[: len(data) - cut])
    if form == "flat":
        with pytest.raises(CoveyError):
            read_adapter(path, lm)
    else:  # these two have no digest of their values: a changed value is another value
        with contextlib.suppress(CoveyError):
            assert len(read_adapter(path, lm).vector) == len(adapter.vector)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(data=st.binary(max_size=300), magic=st.sampled_from([b"COVEYAD1", b"\x08\0\0\0TORT", b""]))
def test_rubbish_is_refused(data: bytes, magic: bytes, lm: Bundle, tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(magic + data)
    with pytest.raises(CoveyError):
        read_adapter(tmp_path / "x.safetensors", lm)


def test_onnx_runtime_applies_the_file_to_the_bundles_own_graph(lm: Bundle, tmp_path: Path) -> None:
    """As an application does that knows nothing of covey: tokens and an adapter file, and no vector."""
    ort = pytest.importorskip("onnxruntime")
    adapter = some(lm)
    adapter = Adapter(adapter.layout, np.clip(adapter.vector, -0.1, 0.1), 7)
    write_adapter(adapter, tmp_path / "a.onnx_adapter", lm, "onnx")
    ids = np.arange(4 * 32, dtype=np.int64).reshape(4, 32)
    expected = open_trainer(lm, "onnx", threads=1).logits(adapter.vector, ids)
    session = ort.InferenceSession(lm.path("onnx", "forward"), providers=["CPUExecutionProvider"])
    loaded, options = ort.LoraAdapter(), ort.RunOptions()
    loaded.Load(str(tmp_path / "a.onnx_adapter"))
    options.add_active_adapter(loaded)
    # Python's own check wants every input in the feed; the runtime below it, which C and Java call, does not.
    names = [output.name for output in session.get_outputs()]
    seen = session._sess.run(names, {"input_ids": ids}, options)[0]
    assert np.array_equal(seen, expected)


@pytest.mark.parametrize("rank", [0, 1])
def test_peft_loads_the_folder_and_means_the_same_model(rank: int, lm: Bundle, tmp_path: Path) -> None:
    if any(importlib.util.find_spec(name) is None for name in ("peft", "transformers", "torch")):
        pytest.skip("peft and transformers are not installed")
    import torch

    from covey_edge.trainers.ranked import at_rank
    from covey_export.quiet import quiet

    adapter = some(lm, rank)
    adapter = Adapter(adapter.layout, np.clip(adapter.vector, -0.3, 0.3))
    write_adapter(adapter, tmp_path / "f", lm, "peft")
    with quiet():
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        base = AutoModelForCausalLM.from_pretrained(lm.folder.parent / "llama")
        tuned = PeftModel.from_pretrained(base, tmp_path / "f").eval()
    ids = np.random.default_rng(1).integers(3, 250, (4, 32))
    with torch.no_grad():
        loss = float(tuned(input_ids=torch.from_numpy(ids), labels=torch.from_numpy(ids)).loss)
    trainer = open_trainer(lm, "onnx", threads=1)
    ranked = at_rank(trainer, lm.manifest, rank or 2)
    assert ranked.loss_and_gradient(adapter.vector, Batch(ids, ids))[0] == pytest.approx(loss, rel=1e-5)

"""Published adapters: the bits that devices hold, in PEFT's format, appearing whole."""

import importlib.util
import json
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from covey_server import publish
from covey_server.publish import publish_adapter
from covey_shared.bundle import Bundle
from covey_shared.layout import Layout, Tensor, vector_digest
from tests.helpers_server import LAYOUT, make_bundle, run_to_end, served, write_task

needs_peft = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("torch", "transformers", "peft")),
    reason="peft and transformers are not installed",
)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return make_bundle(tmp_path / "bundle")


def test_the_vector_comes_back_bit_for_bit(tmp_path: Path, bundle: Bundle) -> None:
    vector = np.random.default_rng(0).standard_normal(LAYOUT.size).astype(np.float32)
    folder = publish_adapter(tmp_path / "out", bundle, "test", 3, vector)
    assert LAYOUT.join(load_file(folder / "adapter_model.safetensors")).tobytes() == vector.tobytes()
    assert (folder / "adapter_config.json").read_bytes() == b'{"peft_type": "LORA", "r": 4}'
    origin = json.loads((folder / "covey.json").read_text())
    assert (origin["version"], origin["digest"], origin["bundle"]) == (3, vector_digest(vector), bundle.digest)


def test_latest_follows_and_what_is_there_stays(tmp_path: Path, bundle: Bundle) -> None:
    out = tmp_path / "out"
    for version in (1, 2, 2):
        publish_adapter(out, bundle, "test", version, np.full(LAYOUT.size, version, np.float32))
    assert os.readlink(out / "latest") == "v2"
    assert sorted(p.name for p in out.iterdir()) == ["latest", "v1", "v2"]
    assert load_file(out / "v1" / "adapter_model.safetensors").popitem()[1].flat[0] == 1


def test_a_failure_leaves_no_half_of_a_folder(tmp_path: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    publish_adapter(out, bundle, "test", 1, LAYOUT.start(0, np.zeros(3, np.float32)))

    def fail(folder: Path) -> None:
        raise OSError("no")

    monkeypatch.setattr(publish, "sync_folder", fail)
    with pytest.raises(OSError, match="no"):
        publish_adapter(out, bundle, "test", 2, LAYOUT.start(0, np.zeros(3, np.float32)))
    assert sorted(p.name for p in out.iterdir()) == ["latest", "v1"]


def test_every_so_many_versions_and_always_the_last(tmp_path: Path) -> None:
    task = write_task(tmp_path, rounds=5, target=1)
    task.write_text(task.read_text().replace("rounds = 5", "rounds = 5\npublish_every = 2"))
    with served(task, publish=tmp_path / "out") as server:
        run_to_end([server.device("a")], server.start)
        server.wait_for_version(5)
        view = server.aggregator.server.view
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["latest", "v2", "v4", "v5"]
    tensors = load_file(tmp_path / "out" / "latest" / "adapter_model.safetensors")
    assert LAYOUT.join(tensors).tobytes() == view.tobytes()


@needs_peft
@pytest.mark.filterwarnings("ignore")
def test_peft_loads_it_and_computes_with_it(tmp_path: Path) -> None:
    """A tiny Llama: what PeftModel.from_pretrained holds afterwards is the published vector, and it changes logits."""
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    torch.manual_seed(0)
    base = LlamaForCausalLM(config)
    base.save_pretrained(tmp_path / "base")
    model = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"]))
    model.peft_config["default"].save_pretrained(tmp_path / "peft")
    shapes = {name: tuple(t.shape) for name, t in get_peft_model_state_dict(model).items()}
    layout = Layout(
        tuple(Tensor(name=n, shape=s, kind="lora_A" if "lora_A" in n else "lora_B", init="zeros", rank=4)
              for n, s in shapes.items())
    )  # fmt: skip
    bundle = make_bundle(tmp_path / "bundle", layout, (tmp_path / "peft" / "adapter_config.json").read_bytes())
    vector = np.random.default_rng(1).standard_normal(layout.size).astype(np.float32)
    publish_adapter(tmp_path / "out", bundle, "test", 1, vector)

    plain = LlamaForCausalLM.from_pretrained(tmp_path / "base")
    ids = torch.arange(8)[None]
    before = plain(ids).logits.detach().numpy().copy()
    tuned = PeftModel.from_pretrained(plain, str(tmp_path / "out" / "latest"))
    loaded = {name: t.detach().numpy() for name, t in get_peft_model_state_dict(tuned).items()}
    assert layout.join(loaded).tobytes() == vector.tobytes()
    assert np.abs(tuned(ids).logits.detach().numpy() - before).max() > 1e-3

"""FLoRA and FedEx-LoRA with real graphs, real clients of different ranks and the real server."""

import asyncio
import importlib.util
import warnings
from pathlib import Path

import numpy as np
import pytest

from covey_edge.trainers import open_trainer
from covey_shared.bundle import Bundle
from covey_shared.layout import vector_digest
from tests.helpers_edge_serving import serving
from tests.helpers_fleet import TEXTS, Ended, take_part
from tests.helpers_server import status_of

TASK = '[strategy]\nname = "{name}"\n[download]\ncodec = "levels"\nerror = 0.05\n'


@pytest.mark.parametrize(("name", "ranks"), [("flora", {"ann": 1, "bob": 2, "cid": 2}), ("fedex", {})])
def test_second_adapter(name: str, ranks: dict[str, int], second: Bundle, tmp_path: Path) -> None:
    async def everyone(url: str) -> list[Ended]:
        made = {n: open_trainer(second, "onnx", 1) for n in TEXTS}
        every = (take_part(url, n, tmp_path, second, rank=ranks.get(n, 0), trainer=made[n]) for n in TEXTS)
        return await asyncio.gather(*every)

    more = TASK.format(name=name)
    with serving(second, tmp_path / "server", rounds=4, target=3, more=more, publish=tmp_path / "out") as server:
        ended = asyncio.run(everyone(server.url))
        server.wait_for_version(4)
        history = status_of(server.url)["history"]
        divided = server.aggregator.run.divided
        adapter, beside = divided.model(server.aggregator.server.view)
    assert history[-1]["loss"] < history[0]["loss"] - 0.02
    assert {vector_digest(record.version().adapter) for record, _ in ended} == {history[-1]["digest"]}
    assert beside is not None
    assert beside.any()
    if name == "flora":
        sent = {
            n: next(e["bytes"] for e in log if e["event"] == "uploaded")
            for n, (_, log) in zip(TEXTS, ended, strict=True)
        }
        assert sent["ann"] < sent["bob"]
        assert adapter.tobytes() == divided.start.tobytes(), "what was learned is in the second adapter"
    check_published(second, adapter, beside, tmp_path / "out" / "latest")


def check_published(bundle: Bundle, adapter: object, beside: object, folder: Path) -> None:
    """What PEFT makes of the published folder is what the graphs make of both adapters."""
    if any(importlib.util.find_spec(m) is None for m in ("torch", "transformers", "peft")):
        return
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    trainer = open_trainer(bundle, "onnx", 1, frozen=beside)  # type: ignore[arg-type]
    ids = np.arange(4 * 32, dtype=np.int64).reshape(4, 32) % 250 + 3
    mine = trainer.logits(adapter, ids)  # type: ignore[arg-type]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT reads what transformers deprecates
        base = AutoModelForCausalLM.from_pretrained(bundle.folder.parent / "llama")
        model = PeftModel.from_pretrained(base, folder).eval()
    with torch.no_grad():
        theirs = model(torch.from_numpy(ids)).logits.numpy()
    assert np.abs(mine - theirs).max() < 1e-4 * np.abs(theirs).max()

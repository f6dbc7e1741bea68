"""The device that a runtime computes on: what is chosen, what is refused, and what happens when it does not work."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from covey_edge import trainers
from covey_edge.trainers import missing_modules, open_graphs
from covey_edge.trainers.providers import CPU, CUDA, TENSORRT, FallsBack, Run, pick, with_options
from covey_shared.bundle import Bundle
from covey_shared.errors import BundleError, UsageError

GPU_WHEEL = [TENSORRT, CUDA, CPU]


@pytest.mark.parametrize(
    ("wanted", "available", "name"),
    [
        ("", GPU_WHEEL, CPU),
        ("cpu", GPU_WHEEL, CPU),
        ("auto", GPU_WHEEL, CUDA),  # never TensorRT, whose engines take minutes to build
        ("auto", ["AzureExecutionProvider", CPU], CPU),
        ("auto", ["MIGraphXExecutionProvider", CPU], "MIGraphXExecutionProvider"),
        ("tensorrt", GPU_WHEEL, TENSORRT),
        ("TensorRT", GPU_WHEEL, TENSORRT),
        (CUDA, GPU_WHEEL, CUDA),
        ("cuda", [CPU], ""),
        ("quantum", GPU_WHEEL, ""),
    ],
)
def test_choice(wanted: str, available: list[str], name: str) -> None:
    assert pick(wanted, available) == name


def test_options(lm: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert with_options(CPU, lm) == [CPU]
    assert with_options(CUDA, lm) == [(CUDA, {"use_tf32": "0"}), CPU]
    (first, engine), *rest = with_options(TENSORRT, lm)
    assert first == TENSORRT
    assert engine["trt_engine_cache_enable"] == "1"
    assert Path(engine["trt_engine_cache_path"]).is_dir()
    assert lm.digest[:16] in engine["trt_engine_cache_path"]
    assert rest == with_options(CUDA, lm)
    assert with_options("XnnpackExecutionProvider", lm) == ["XnnpackExecutionProvider", CPU]


class Broken:
    """A device without kernels for these roles, as one is that a wheel lists and a board does not have."""

    def __init__(self, good: Run, *roles: str):
        self.good, self.roles = good, roles

    def __call__(self, role: str, inputs: Mapping[str, NDArray[Any]]) -> Sequence[NDArray[Any]]:
        if role in self.roles:
            raise RuntimeError("cudaErrorNoKernelImageForDevice: no kernel image is available\nand much more")
        return self.good(role, inputs)

    def load(self, role: str) -> Any:
        return self.good.load(role)


def inputs(lm: Bundle) -> dict[str, NDArray[Any]]:
    ids = np.arange(128, dtype=np.int64).reshape(4, 32) + 3
    return {"adapter": lm.start(0), "input_ids": ids, "labels": ids}


@pytest.mark.parametrize("runtime", [r for r in ("onnx", "torch") if not missing_modules(r)])
def test_the_cpu_takes_over_at_the_first_run(runtime: str, lm: Bundle) -> None:
    good, _ = open_graphs(lm, runtime, threads=1)
    said: list[str] = []
    device = FallsBack(Broken(good, "train"), lambda: good, "CUDAExecutionProvider", said.append)
    device("eval", inputs(lm))
    assert said == []
    loss, _ = device("train", inputs(lm))
    assert float(loss) == float(good("train", inputs(lm))[0])
    assert said == [
        "CUDAExecutionProvider cannot run this bundle here, so the CPU does: cudaErrorNoKernelImageForDevice: no "
        "kernel image is available"
    ]
    device("forward", {k: v for k, v in inputs(lm).items() if k != "labels"})
    assert len(said) == 1


def test_a_device_that_worked_and_fails_is_an_error(lm: Bundle) -> None:
    good, _ = open_graphs(lm, "onnx", threads=1)
    broken = Broken(good)
    device = FallsBack(broken, lambda: good, "gpu", lambda sentence: None)
    device("train", inputs(lm))
    broken.roles = ("train",)
    with pytest.raises(RuntimeError, match="NoKernelImage"):
        device("train", inputs(lm))


def test_a_device_that_cannot_even_be_opened(lm: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch moves the weights to the device when it is opened, where a driver may already fail."""
    pytest.importorskip("torch")
    from covey_edge.trainers import torch as runtime

    honest, said = runtime.open_graphs, list[str]()

    def opened(bundle: Bundle, threads: int, provider: str) -> Any:
        if provider == "cuda":
            raise BundleError("the weights cannot be moved: CUDA error 999")
        return honest(bundle, threads, provider)

    monkeypatch.setattr(runtime, "open_graphs", opened)
    monkeypatch.setattr(runtime, "choose_device", lambda provider: "cuda")
    graphs, device = open_graphs(lm, "torch", 1, "cuda", said.append)
    assert device == "cpu"
    assert said == ["cuda cannot run this bundle here, so the CPU does: the weights cannot be moved: CUDA error 999"]
    monkeypatch.undo()
    assert float(graphs("train", inputs(lm))[0]) > 0


def test_auto_is_the_cpu_here_unless_there_is_a_gpu(lm: Bundle) -> None:
    for runtime in [r for r in trainers.RUNTIMES if not missing_modules(r)]:
        run, _ = open_graphs(lm, runtime, threads=1, provider="auto")
        assert float(run("train", inputs(lm))[0]) > 0


def test_a_session_that_the_library_gave_to_the_cpu_behind_our_back(lm: Bundle) -> None:
    """Without its driver ONNX Runtime opens CUDA as CPU and says so in its log only."""
    pytest.importorskip("onnxruntime")
    from covey_edge.trainers.onnx import Sessions

    asked = "QuantumExecutionProvider"  # unknown names are dropped in the same way
    said: list[str] = []
    on_cpu = partial(Sessions, lm, 1, CPU)
    with pytest.warns(UserWarning, match="not in available provider names"):
        loss, _ = FallsBack(Sessions(lm, 1, asked), on_cpu, asked, said.append)("train", inputs(lm))
    assert float(loss) > 0
    assert "ONNX Runtime cannot open QuantumExecutionProvider: is the driver for it installed?" in said[0]


def test_a_provider_that_is_not_installed(lm: Bundle) -> None:
    with pytest.raises(UsageError, match="has no provider 'tensorrt'"):
        open_graphs(lm, "onnx", provider="tensorrt")

"""`covey export --list-targets`: for each runtime, whether it can be written and run here, and for which devices."""

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import NamedTuple

from covey_export.quiet import quiet
from covey_shared.manifest import TARGETS
from covey_shared.runtimes import version_of


class Facts(NamedTuple):
    """`writes`: the modules that writing needs. `runs_on`: the devices. `providers`: asks the runtime what it has."""

    writes: tuple[str, ...]
    runs_on: str
    providers: Callable[[], list[str]]


def _onnx_providers() -> list[str]:
    names: list[str] = import_module("onnxruntime").get_available_providers()
    return [name.removesuffix("ExecutionProvider") for name in names]


def _executorch_backends() -> list[str]:
    runtime = import_module("executorch.runtime").Runtime.get()
    return ["portable kernels", *runtime.backend_registry.registered_backend_names]


def _torch_devices() -> list[str]:
    torch = import_module("torch")
    cuda = [f"cuda ({torch.cuda.get_device_name()})"] if torch.cuda.is_available() else []
    return [*cuda, "cpu"]


COMMON = ("torch", "transformers", "peft")
FACTS = {
    "onnx": Facts((*COMMON, "onnx", "onnxscript"), "Jetson boards, laptops, servers", _onnx_providers),
    "executorch": Facts((*COMMON, "executorch"), "Android and iOS phones, small boards", _executorch_backends),
    "torch": Facts((*COMMON, "safetensors"), "machines that have PyTorch anyway", _torch_devices),
}


def list_targets() -> str:
    """A paragraph for each target. Imports the runtimes that are installed, without their noise."""
    with quiet():
        return "\n\n".join(_paragraph(target, FACTS[target]) for target in TARGETS)


def _paragraph(target: str, facts: Facts) -> str:
    missing = [m for m in facts.writes if find_spec(m) is None]
    write = f"no: {', '.join(missing)} not installed (pip install 'covey[export]')" if missing else "yes"
    return "\n".join([
        target,
        f"  for            {facts.runs_on}",
        f"  write it here  {write}",
        f"  run it here    {_runtime(target, facts)}",
    ])  # fmt: skip


def _runtime(target: str, facts: Facts) -> str:
    version = version_of(target)
    if not version:
        return f"no: not installed (pip install 'covey[edge,{target}]')"
    try:
        found = ", ".join(facts.providers())
    except Exception as error:  # a runtime that is half installed or does not fit this machine
        return f"no: {version} is installed but does not load ({str(error).strip().splitlines()[0][:100]})"
    return f"{version}, with {found}"

"""The runtimes that a bundle can be for: what has to be installed for each, and which version is. Imports none."""

from importlib.metadata import PackageNotFoundError, version

# A runtime's module may come from one of several distributions: onnxruntime-gpu is onnxruntime with CUDA.
DISTRIBUTIONS = {
    "onnx": ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml"),
    "executorch": ("executorch",),
    "torch": ("torch",),
}


def version_of(runtime: str) -> str:
    """The installed version of a runtime, with the distribution's name where that is not the usual one; or nothing."""
    for name in DISTRIBUTIONS[runtime]:
        try:
            found = version(name)
        except PackageNotFoundError:
            continue
        return found if name == DISTRIBUTIONS[runtime][0] else f"{found} ({name})"
    return ""

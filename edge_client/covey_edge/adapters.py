"""An adapter as a file, in three forms, and the way from each to the vector that trains and back, bit for bit.

- `flat` (`.flat`): what a device holds. A magic, the layout's digest, a SHA-256 of the values, and n little-endian
  float32 values: 72 bytes before a plain array.
- `peft`: a folder as `PeftModel.from_pretrained` loads it, or, where whole blocks train, one with their weights under
  the base model's names (see `covey_shared.peft_folder`).
- `onnx` (`.onnx_adapter`): ONNX Runtime's own adapter file, with one parameter named as the graphs' input, `adapter`.
  An application loads it with `LoraAdapter` and `RunOptions`, and runs the bundle's `forward.onnx` with tokens alone.

Here and not in covey_shared, since ONNX Runtime's form needs that runtime, which the shared code must do without.
safetensors and onnxruntime are imported by the form that needs them; PyTorch and transformers never.
"""

import hashlib
import json
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from covey_edge.state import write_durably
from covey_shared.bundle import Bundle
from covey_shared.errors import LayoutError, UsageError
from covey_shared.layout import Layout, Vector, vector_digest
from covey_shared.manifest import Manifest
from covey_shared.peft_folder import (
    BUNDLED_CONFIG,
    CONFIG,
    ORIGIN,
    WEIGHTS,
    WHOLE,
    check_config,
    constants,
    peft_files,
    read_weights,
)

FORMS = ("flat", "peft", "onnx")
SUFFIXES = {".flat": "flat", ".onnx_adapter": "onnx"}
MAGIC = b"COVEYAD1"
HEADER = len(MAGIC) + 64
ONNX_MAGIC = b"TORT"  # the FlatBuffers file identifier, at byte 4
PARAMETER = "adapter"


class Adapter(NamedTuple):
    """A vector and what it is a vector of: the bundle's layout, or that of one of its lower ranks.

    `version` is the server's version that it is, -1 where that is not known.
    """

    layout: Layout
    vector: Vector
    version: int = -1


def form_of(path: Path) -> str:
    """The form of what lies at `path`, by its content."""
    if path.is_dir():
        return "peft"
    if not path.is_file():
        raise UsageError(f"there is no adapter at {path}: give a PEFT folder, a .flat file or an .onnx_adapter file")
    with path.open("rb") as stream:
        head = stream.read(8)
    if head == MAGIC:
        return "flat"
    if head[4:8] == ONNX_MAGIC:
        return "onnx"
    if path.name.endswith(".safetensors"):
        return "peft"
    raise UsageError(f"{path} is no adapter: it is neither a PEFT folder, a flat file nor an ONNX Runtime adapter")


def form_for(path: Path) -> str:
    """The form that a name asks for: by its suffix, and a folder without one."""
    if path.suffix not in SUFFIXES and path.suffix:
        known = ", ".join(SUFFIXES)
        raise UsageError(f"{path.suffix!r} names no form of an adapter: use {known}, no suffix for a folder, or --to")
    return SUFFIXES.get(path.suffix, "peft")


def layouts(manifest: Manifest) -> list[Layout]:
    """What an adapter of this bundle can be a vector of: its layout, and those of its lower ranks."""
    lower = [manifest.layout.at_rank(rank) for rank in manifest.ranks if rank < manifest.rank]
    return [manifest.layout, *lower]


def rank_of(layout: Layout, manifest: Manifest) -> int:
    """The rank as which the bundle offers a layout, whatever ranks some modules have of their own; 0 without LoRA."""
    return manifest.rank if layout == manifest.layout else layout.rank


def read_adapter(path: Path, bundle: Bundle) -> Adapter:
    """The adapter at `path`. Raises LayoutError when it is not of this bundle, UsageError when it is none."""
    reader = {"flat": _read_flat, "peft": _read_peft, "onnx": _read_onnx}[form_of(path)]
    adapter = reader(path, bundle)
    if not np.isfinite(adapter.vector).all():
        raise UsageError(f"the adapter {path} holds values that are not numbers: it is of no use")
    return adapter


def write_adapter(adapter: Adapter, path: Path, bundle: Bundle, form: str) -> None:
    """Write one form: a new file or folder appears whole; of one that is there each file is replaced whole.

    Refuses a folder that holds something else.
    """
    adapter.layout.check(adapter.vector)
    path.parent.mkdir(parents=True, exist_ok=True)
    if form == "flat":
        write_durably(path, flat_bytes(adapter))
    elif form == "onnx":
        write_durably(path, _onnx_bytes(adapter, path.parent))
    else:
        _write_folder(adapter, path, bundle)


def flat_bytes(adapter: Adapter) -> bytes:
    """The flat form."""
    values = np.ascontiguousarray(adapter.vector, "<f4").tobytes()
    return MAGIC + bytes.fromhex(adapter.layout.digest) + hashlib.sha256(values).digest() + values


def _read_flat(path: Path, bundle: Bundle) -> Adapter:
    known = {layout.digest: layout for layout in layouts(bundle.manifest)}
    with path.open("rb") as stream:
        head = stream.read(HEADER)
        layout = known.get(head[len(MAGIC) : len(MAGIC) + 32].hex())
        if layout is None:
            raise LayoutError(f"{path} is an adapter of another layout than the bundle's: it belongs to another bundle")
        values = stream.read(4 * layout.size + 1)
    if len(values) != 4 * layout.size or hashlib.sha256(values).digest() != head[-32:]:
        raise UsageError(f"{path} is damaged: its values do not have the digest that it states")
    return Adapter(layout, np.frombuffer(values, "<f4").astype(np.float32))


def _read_peft(path: Path, bundle: Bundle) -> Adapter:
    name = WEIGHTS if has_peft(bundle) else WHOLE
    folder, weights = (path, path / name) if path.is_dir() else (path.parent, path)
    if not weights.is_file():
        raise UsageError(f"{path} holds no adapter of this bundle: it has no {name}")
    fixed = constants(bundle)
    limit = 8 * bundle.manifest.layout.size + sum(a.nbytes for a in fixed.values()) + (1 << 20)
    arrays = read_weights(weights, limit, fixed)
    layout = _layout_of({name: a.shape for name, a in arrays.items()}, bundle.manifest)
    vector = layout.join(arrays)
    check_config(folder / CONFIG, bundle, layout)
    return Adapter(layout, vector, _version(folder / ORIGIN))


def _layout_of(shapes: dict[str, tuple[int, ...]], manifest: Manifest) -> Layout:
    """The layout with these shapes; the bundle's own where none has them, so that `join` says what is wrong."""
    for layout in layouts(manifest):
        if all(shapes.get(t.name) == t.shape for t in layout.tensors):
            return layout
    return manifest.layout


def _version(path: Path) -> int:
    """The version that a folder says it is."""
    try:
        version = json.loads(path.read_bytes()[:65536])["version"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return -1
    return version if type(version) is int and 0 <= version < 2**31 else -1


def has_peft(bundle: Bundle) -> bool:
    """Whether what the bundle trains is for PEFT; a whole block is weights under the base model's own names."""
    return BUNDLED_CONFIG in bundle.manifest.files


def write_into(adapter: Adapter, folder: Path, bundle: Bundle) -> None:
    """The files of the folder form into a folder that is there, each replaced whole."""
    version = {"version": adapter.version} if adapter.version >= 0 else {}
    for name, data in peft_files(bundle, adapter.layout, adapter.vector, version).items():
        write_durably(folder / name, data)


def _write_folder(adapter: Adapter, path: Path, bundle: Bundle) -> None:
    if path.exists() and not (path.is_dir() and ((path / ORIGIN).is_file() or not any(path.iterdir()))):
        raise UsageError(f"{path} exists and is no adapter's folder: choose another place")
    if path.exists():
        write_into(adapter, path, bundle)
        return
    with tempfile.TemporaryDirectory(prefix=".adapter.", dir=path.parent) as own:
        folder = Path(own, "new")
        folder.mkdir()
        write_into(adapter, folder, bundle)
        folder.rename(path)


def _onnx_bytes(adapter: Adapter, folder: Path) -> bytes:
    """ONNX Runtime writes a file only, hence the temporary one. The model's number is the layout's digest, cut."""
    import onnxruntime

    form = onnxruntime.AdapterFormat()
    form.set_adapter_version(max(adapter.version, 0))
    form.set_model_version(model_number(adapter.layout))
    form.set_parameters({PARAMETER: onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(adapter.vector))})
    with tempfile.TemporaryDirectory(prefix=".adapter.", dir=folder) as own:
        form.export_adapter(f"{own}/out")
        return Path(own, "out").read_bytes()


def model_number(layout: Layout) -> int:
    """What an ONNX Runtime adapter file states as its model's version: 31 bits of the layout's digest."""
    return layout.short_id & 0x7FFFFFFF


def _read_onnx(path: Path, bundle: Bundle) -> Adapter:
    import onnxruntime

    if path.stat().st_size > 4 * bundle.manifest.layout.size + (1 << 16):
        raise LayoutError(f"{path} is longer than an adapter of this bundle can be: it belongs to another one")
    try:
        form = onnxruntime.AdapterFormat.read_adapter(str(path))
        parameters = {name: value.numpy() for name, value in form.get_parameters().items()}
        number, version = form.get_model_version(), form.get_adapter_version()
    except Exception as error:  # the library's errors share no base class but Exception
        raise UsageError(f"ONNX Runtime cannot read {path}: {' '.join(str(error).split())[:100]}") from None
    for layout in layouts(bundle.manifest):
        if number == model_number(layout) and parameters.keys() == {PARAMETER}:
            vector = parameters[PARAMETER]
            if vector.dtype == np.float32 and vector.shape == (layout.size,):
                return Adapter(layout, vector.copy(), version or -1)
    raise LayoutError(f"{path} is an adapter of another layout than the bundle's: it belongs to another bundle")


def show_adapter(adapter: Adapter, form: str, bundle: Bundle) -> str:
    """Size, rank, digest, and for each kind of tensor how far it moved from the start."""
    layout, manifest = adapter.layout, bundle.manifest
    rank = rank_of(layout, manifest)
    start = bundle.start(manifest.seed, rank)
    version = f", version {adapter.version}" if adapter.version >= 0 else ""
    lines = [
        f"{layout.size:,} numbers for {manifest.model}, rank {rank}, as {form}{version}",
        f"digest {vector_digest(adapter.vector)}",
        "kind        tensors      numbers       norm   moved from the start",
    ]
    for kind in dict.fromkeys(t.kind for t in layout.tensors):
        slices = [where for t, where in layout.slices() if t.kind == kind]
        ours, theirs = (np.concatenate([v[where] for where in slices]) for v in (adapter.vector, start))
        norms = (float(np.linalg.norm(v.astype(np.float64))) for v in (ours, ours - theirs))
        lines.append("{:<8} {:>10,} {:>12,} {:>10.4g} {:>22.4g}".format(kind, len(slices), len(ours), *norms))
    return "\n".join(lines)

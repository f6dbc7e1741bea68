"""The bundle's manifest: what is in it, what it trains, and the proof that it does. Pure: bytes in, values out.

`manifest.json` names every other file of the bundle by SHA-256, so the digest of its bytes identifies the whole bundle.
Paths are relative, with forward slashes; a path that could leave the folder is refused.
"""

import dataclasses
import json
import math
import re
import sys
import typing
from dataclasses import dataclass, field
from typing import Any

from covey_shared import __version__
from covey_shared.errors import BundleError, LayoutError
from covey_shared.layout import Layout

FORMAT = 1
TASKS = ("causal-lm", "sequence-classification", "image-classification")
PRECISIONS = ("float32", "int8", "int4")
TARGETS = ("onnx", "executorch", "torch")
MAX_PIXELS = 3 * 4096 * 4096
MAX_MANIFEST_BYTES = 16 * 2**20
_SAFE_PATH = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*")


def _check_types(record: Any) -> None:
    """Refuses a field that does not hold what its annotation says: a manifest may come from anywhere."""
    for name, kind in typing.get_type_hints(type(record)).items():
        value = getattr(record, name)
        if not _fits(value, kind):
            wanted = getattr(kind, "__name__", str(kind))
            raise BundleError(f"the manifest's field {name!r} is {repr(value)[:60]}, which is no {wanted}")


def _fits(value: Any, kind: Any) -> bool:
    args = typing.get_args(kind)
    if type(None) in args:
        return value is None or _fits(value, args[0])
    if typing.get_origin(kind) is tuple:
        return isinstance(value, tuple) and all(_fits(v, args[0]) for v in value)
    if typing.get_origin(kind) is dict:
        return isinstance(value, dict) and all(_fits(k, str) and _fits(v, args[1]) for k, v in value.items())
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    if kind is float:
        return isinstance(value, int | float) and abs(value) <= sys.float_info.max
    return isinstance(value, kind)


def _image(raw: dict[str, Any]) -> "Image":
    return Image(**{name: _tuple(value) for name, value in raw.items()})


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """One file of the bundle. `targets` names the runtimes that need it; none means that every device does."""

    sha256: str
    bytes: int
    targets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_types(self)
        if not re.fullmatch(r"[0-9a-f]{64}", self.sha256) or self.bytes < 0:
            raise BundleError(f"the manifest holds a file with digest {self.sha256[:80]!r} and {self.bytes} bytes")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokenizer:
    """How text becomes tokens. `bytes`: token = byte + offset, no library. `tokenizers`: the file at `path`."""

    kind: str
    path: str = ""
    offset: int = 0
    vocab_size: int
    pad_id: int
    eos_id: int = -1
    bos_id: int = -1
    unk_id: int = -1

    def __post_init__(self) -> None:
        _check_types(self)
        if self.kind not in ("bytes", "tokenizers"):
            raise BundleError(f"the bundle has tokenizer kind {self.kind[:40]!r}, known are 'bytes' and 'tokenizers'")


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """What an image model takes: float32 [B, channels, height, width], (pixel / 255 - mean) / std for each channel."""

    channels: int
    height: int
    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        _check_types(self)
        if min(self.shape) < 1 or math.prod(self.shape) > MAX_PIXELS:
            raise BundleError(f"the bundle is for images of {self.channels} x {self.height} x {self.width}")
        if not len(self.mean) == len(self.std) == self.channels or min(self.std) <= 0:
            raise BundleError("the bundle's images have no mean and positive standard deviation for each channel")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        return self.channels, self.height, self.width


@dataclass(frozen=True, slots=True, kw_only=True)
class Parity:
    """What the export measured against eager PyTorch on one batch: relative errors, peak memory, time of a step."""

    loss_error: float
    gradient_error: float
    tolerance: float
    peak_bytes: int
    step_seconds: float

    def __post_init__(self) -> None:
        _check_types(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantisation:
    """How the frozen weights were rounded: `group` inputs share a scale (0 = a whole row).

    `parameters` of the base's are codes. The losses are those of the base in float32 and as rounded, in nats, over
    `tokens` counted labels of a text that was given, or else of the random batch of the proof (`measured_on`).
    """

    bits: int
    group: int
    parameters: int
    loss_float32: float
    loss: float
    tokens: int
    measured_on: str

    def __post_init__(self) -> None:
        _check_types(self)
        if self.bits not in (4, 8) or self.group < 0 or self.measured_on not in ("batch", "sample"):
            raise BundleError(f"the bundle has weights of {self.bits} bits in groups of {self.group}")

    @property
    def loss_difference(self) -> float:
        """What rounding costs, in nats a label."""
        return self.loss - self.loss_float32


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A bundle. `graphs`: target -> role -> path; onnx {train, eval, forward}, executorch {model}, torch {folder}.

    `ranks` are the ranks that devices may train, ascending; the last is `rank`, the rank of `layout` (none where
    nothing is LoRA, `rank` alone by default). `frozen` is the layout of the second adapter that the graphs add but do
    not train. A bundle of text has `tokenizer` and `seq_len`, one of images has `image` and seq_len 0.
    """

    format: int = FORMAT
    covey: str
    model: str
    revision: str
    licence: str
    architecture: str
    parameters: int
    task: str
    labels: tuple[str, ...] = ()
    batch_size: int
    seq_len: int
    rank: int
    ranks: tuple[int, ...] = ()
    alpha: float
    target_modules: tuple[str, ...]
    precision: str
    quantisation: Quantisation | None = None
    recompute: bool = False
    seed: int
    layout: Layout
    start: str = ""
    frozen: Layout | None = None
    tokenizer: Tokenizer | None = None
    image: Image | None = None
    graphs: dict[str, dict[str, str]]
    parity: dict[str, Parity]
    minimum_client: str
    files: dict[str, File] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_types(self)
        if self.format != FORMAT:
            raise BundleError(f"the bundle has format {self.format}, this version of covey reads format {FORMAT}")
        if self.task not in TASKS:
            raise BundleError(f"the bundle is for task {self.task!r}; known are {', '.join(TASKS)}")
        if self.precision not in PRECISIONS or (self.quantisation is None) is not (self.precision == "float32"):
            raise BundleError(f"the bundle's base is {self.precision[:40]!r}; known are {', '.join(PRECISIONS)}")
        if not self.ranks and self.rank:
            object.__setattr__(self, "ranks", (self.rank,))
        self._check_shapes()
        for path in self.files:
            if not _SAFE_PATH.fullmatch(path) or ".." in path:
                raise BundleError(f"the bundle names the file {path[:80]!r}, which is not a safe relative path")
        unknown = set(self.graphs) - set(TARGETS)
        if unknown:
            raise BundleError(f"the bundle has graphs for the unknown runtime {min(unknown)[:40]!r}")

    def _check_shapes(self) -> None:
        images = self.task == "image-classification"
        if self.batch_size < 1 or self.seq_len < (0 if images else 2):
            raise BundleError(f"the bundle has batch size {self.batch_size} and sequence length {self.seq_len}")
        if images is (self.image is None) or images is (self.tokenizer is not None):
            has = "an image shape and no tokenizer" if images else "a tokenizer and no image shape"
            raise BundleError(f"the bundle is for {self.task}, so it must have {has}")
        if list(self.ranks) != sorted({*self.ranks}) or self.ranks[-1:] != ((self.rank,) if self.rank else ()):
            raise BundleError(f"the bundle has rank {self.rank} and ranks {self.ranks}")
        if any(r < 1 for r in self.ranks):
            raise BundleError(f"the bundle has ranks {self.ranks}; each must be at least 1")

    @property
    def text(self) -> Tokenizer:
        """The tokenizer; raises BundleError for a bundle that is not of text."""
        if self.tokenizer is None:
            raise BundleError(f"the bundle is for {self.task}, so it has no tokenizer")
        return self.tokenizer

    def inputs(self, role: str) -> tuple[str, ...]:
        """The names of a graph's inputs, in its order; `role` is train, eval or forward."""
        frozen = ("frozen",) if self.frozen else ()
        labels = () if role == "forward" else ("labels",)
        return ("adapter", *frozen, "pixel_values" if self.image else "input_ids", *labels)

    def files_for(self, target: str) -> dict[str, File]:
        """The files that a device with this runtime needs."""
        if target not in self.graphs:
            have = ", ".join(sorted(self.graphs))
            raise BundleError(
                f"the bundle was exported for {have}, not for {target}; export it with --targets {target}"
            )
        return {path: f for path, f in self.files.items() if not f.targets or target in f.targets}

    def unnamed(self, target: str | None = None) -> list[str]:
        """Paths that the manifest refers to, for one target or all, without naming the file or a file below it.

        A bundle that has any must not be used: they could be anything on this machine.
        """
        graphs = [self.graphs[target]] if target else list(self.graphs.values())
        texts = [self.tokenizer.path] if self.tokenizer else []
        paths = [self.start, *texts, *(path for roles in graphs for path in roles.values())]
        return [p for p in paths if p and p not in self.files and not any(f.startswith(p + "/") for f in self.files)]

    def to_bytes(self) -> bytes:
        """The JSON text, indented for people, with sorted keys."""
        data = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        data["layout"] = self.layout.to_json()
        data["layout_digest"] = self.layout.digest
        data["frozen"] = self.frozen.to_json() if self.frozen else None
        data["tokenizer"] = dataclasses.asdict(self.tokenizer) if self.tokenizer else None
        data["image"] = dataclasses.asdict(self.image) if self.image else None
        data["quantisation"] = dataclasses.asdict(self.quantisation) if self.quantisation else None
        data["parity"] = {k: dataclasses.asdict(v) for k, v in self.parity.items()}
        data["files"] = {k: dataclasses.asdict(v) for k, v in self.files.items()}
        return (json.dumps(data, indent=1, sort_keys=True) + "\n").encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> "Manifest":
        """The inverse of `to_bytes`; raises BundleError with the field that is wrong."""
        if len(data) > MAX_MANIFEST_BYTES:
            raise BundleError(f"the manifest has {len(data):,} bytes, more than {MAX_MANIFEST_BYTES:,}")
        try:
            raw = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise BundleError(f"the manifest is not JSON: {str(error)[:80]}") from None
        if not isinstance(raw, dict):
            raise BundleError("the manifest is not a JSON object")
        unknown = set(raw) - {f.name for f in dataclasses.fields(cls)} - {"layout_digest"}
        if unknown:
            raise BundleError(
                f"the manifest has the field {min(unknown)[:40]!r}, which covey {__version__} does not know: a newer "
                "one made the bundle, so update this one"
            )
        try:
            digest = raw.pop("layout_digest")
            raw["layout"] = Layout.from_json(raw["layout"])
            raw["frozen"] = None if raw.get("frozen") is None else Layout.from_json(raw["frozen"])
            raw["tokenizer"] = None if raw.get("tokenizer") is None else Tokenizer(**raw["tokenizer"])
            raw["image"] = None if raw.get("image") is None else _image(raw["image"])
            rounded = raw.get("quantisation")
            raw["quantisation"] = None if rounded is None else Quantisation(**rounded)
            raw["parity"] = {k: Parity(**v) for k, v in raw["parity"].items()}
            raw["files"] = {k: File(**{**v, "targets": _tuple(v["targets"])}) for k, v in raw["files"].items()}
            for name in ("labels", "target_modules"):
                raw[name] = _tuple(raw[name])
            raw["ranks"] = _tuple(raw.get("ranks", ()))
            manifest = cls(**raw)
        except KeyError as error:
            raise BundleError(f"the manifest lacks the field {error}") from None
        except (TypeError, ValueError, AttributeError, LayoutError) as error:
            raise BundleError(f"the manifest is damaged: {error}") from None
        if manifest.layout.digest != digest:
            raise BundleError("the manifest's layout does not have the digest that the manifest states")
        return manifest

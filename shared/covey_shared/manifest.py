"""The bundle's manifest: what is in it, what it trains, and the proof that it does. Pure: bytes in, values out.

`manifest.json` names every other file of the bundle by SHA-256, so the digest of its bytes identifies the whole bundle.
Paths are relative, with forward slashes; a path that could leave the folder is refused.
"""

import dataclasses
import json
import re
import sys
import typing
from dataclasses import dataclass, field
from typing import Any

from covey_shared.errors import BundleError, LayoutError
from covey_shared.layout import Layout

FORMAT = 1
TASKS = ("causal-lm", "sequence-classification")
TARGETS = ("onnx", "executorch", "torch")
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
    if typing.get_origin(kind) is tuple:
        return isinstance(value, tuple) and all(_fits(v, args[0]) for v in value)
    if typing.get_origin(kind) is dict:
        return isinstance(value, dict) and all(_fits(k, str) and _fits(v, args[1]) for k, v in value.items())
    if isinstance(value, bool):
        return False
    if kind is float:
        return isinstance(value, int | float) and abs(value) <= sys.float_info.max
    return isinstance(value, kind)


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
class Parity:
    """What the export measured against eager PyTorch on one batch: relative errors, peak memory, time of a step."""

    loss_error: float
    gradient_error: float
    tolerance: float
    peak_bytes: int
    step_seconds: float

    def __post_init__(self) -> None:
        _check_types(self)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A bundle. `graphs`: target -> role -> path; onnx {train, eval, forward}, executorch {model}, torch {folder}."""

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
    alpha: float
    target_modules: tuple[str, ...]
    precision: str
    seed: int
    layout: Layout
    start: str = ""
    tokenizer: Tokenizer
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
        if self.batch_size < 1 or self.seq_len < 2:
            raise BundleError(f"the bundle has batch size {self.batch_size} and sequence length {self.seq_len}")
        for path in self.files:
            if not _SAFE_PATH.fullmatch(path) or ".." in path:
                raise BundleError(f"the bundle names the file {path[:80]!r}, which is not a safe relative path")
        unknown = set(self.graphs) - set(TARGETS)
        if unknown:
            raise BundleError(f"the bundle has graphs for the unknown runtime {min(unknown)[:40]!r}")

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
        paths = [self.start, self.tokenizer.path, *(path for roles in graphs for path in roles.values())]
        return [p for p in paths if p and p not in self.files and not any(f.startswith(p + "/") for f in self.files)]

    def to_bytes(self) -> bytes:
        """The JSON text, indented for people, with sorted keys."""
        data = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        data["layout"] = self.layout.to_json()
        data["layout_digest"] = self.layout.digest
        data["tokenizer"] = dataclasses.asdict(self.tokenizer)
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
        try:
            digest = raw.pop("layout_digest")
            raw["layout"] = Layout.from_json(raw["layout"])
            raw["tokenizer"] = Tokenizer(**raw["tokenizer"])
            raw["parity"] = {k: Parity(**v) for k, v in raw["parity"].items()}
            raw["files"] = {k: File(**{**v, "targets": _tuple(v["targets"])}) for k, v in raw["files"].items()}
            raw["labels"] = _tuple(raw["labels"])
            raw["target_modules"] = _tuple(raw["target_modules"])
            manifest = cls(**raw)
        except KeyError as error:
            raise BundleError(f"the manifest lacks the field {error}") from None
        except (TypeError, ValueError, AttributeError, LayoutError) as error:
            raise BundleError(f"the manifest is damaged: {error}") from None
        if manifest.layout.digest != digest:
            raise BundleError("the manifest's layout does not have the digest that the manifest states")
        return manifest

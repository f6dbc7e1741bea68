"""The bundle's manifest: what is in it, what it trains, and the proof that it does. Pure: bytes in, values out.

`manifest.json` names every other file of the bundle by SHA-256, so the digest of its bytes identifies the whole bundle.
Paths are relative, with forward slashes; a path that could leave the folder is refused.
"""

import dataclasses
import json
import re
from dataclasses import dataclass, field

from covey_shared.errors import BundleError, LayoutError
from covey_shared.layout import Layout

FORMAT = 1
TASKS = ("causal-lm", "sequence-classification")
TARGETS = ("onnx", "executorch", "torch")
MAX_MANIFEST_BYTES = 16 * 2**20
_SAFE_PATH = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*")


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """One file of the bundle. `targets` names the runtimes that need it; none means that every device does."""

    sha256: str
    bytes: int
    targets: tuple[str, ...] = ()


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Parity:
    """What the export measured against eager PyTorch on one batch: relative errors, peak memory, time of a step."""

    loss_error: float
    gradient_error: float
    tolerance: float
    peak_bytes: int
    step_seconds: float


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
        if self.format != FORMAT:
            raise BundleError(f"the bundle has format {self.format}, this version of covey reads format {FORMAT}")
        if self.task not in TASKS:
            raise BundleError(f"the bundle is for task {self.task!r}; known are {', '.join(TASKS)}")
        if self.batch_size < 1 or self.seq_len < 2:
            raise BundleError(f"the bundle has batch size {self.batch_size} and sequence length {self.seq_len}")
        if self.tokenizer.kind not in ("bytes", "tokenizers"):
            raise BundleError(
                f"the bundle has tokenizer kind {self.tokenizer.kind!r}, known are 'bytes' and 'tokenizers'"
            )
        for path, file in self.files.items():
            if not _SAFE_PATH.fullmatch(path) or ".." in path:
                raise BundleError(f"the bundle names the file {path!r}, which is not a safe relative path")
            if not re.fullmatch(r"[0-9a-f]{64}", file.sha256) or file.bytes < 0:
                raise BundleError(f"the manifest's entry for {path!r} is damaged")
        unknown = set(self.graphs) - set(TARGETS)
        if unknown:
            raise BundleError(f"the bundle has graphs for the unknown runtime {sorted(unknown)[0]!r}")

    def files_for(self, target: str) -> dict[str, File]:
        """The files that a device with this runtime needs."""
        if target not in self.graphs:
            have = ", ".join(sorted(self.graphs))
            raise BundleError(
                f"the bundle was exported for {have}, not for {target}; export it with --targets {target}"
            )
        return {path: f for path, f in self.files.items() if not f.targets or target in f.targets}

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
            raise BundleError(f"the manifest is not JSON: {error}") from None
        if not isinstance(raw, dict):
            raise BundleError("the manifest is not a JSON object")
        try:
            digest = raw.pop("layout_digest")
            raw["layout"] = Layout.from_json(raw["layout"])
            raw["tokenizer"] = Tokenizer(**raw["tokenizer"])
            raw["parity"] = {k: Parity(**v) for k, v in raw["parity"].items()}
            raw["files"] = {k: File(**{**v, "targets": tuple(v["targets"])}) for k, v in raw["files"].items()}
            raw["labels"] = tuple(raw["labels"])
            raw["target_modules"] = tuple(raw["target_modules"])
            manifest = cls(**raw)
        except KeyError as error:
            raise BundleError(f"the manifest lacks the field {error}") from None
        except (TypeError, ValueError, AttributeError, LayoutError) as error:
            raise BundleError(f"the manifest is damaged: {error}") from None
        if manifest.layout.digest != digest:
            raise BundleError("the manifest's layout does not have the digest that the manifest states")
        return manifest

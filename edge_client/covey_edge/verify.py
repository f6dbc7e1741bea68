"""`covey bundle verify`: is this bundle what somebody signed, whole, and fit to train on this machine?

Each check is a line. What fails is an error with one sentence; a runtime that is not installed is said and left out.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from covey_edge.data import IGNORED, Batch
from covey_edge.trainers import GraphTrainer, missing_modules, open_graphs, open_trainer
from covey_shared.bundle import MANIFEST, Bundle
from covey_shared.bundle_signature import check_all, read_signatures, require_signer
from covey_shared.errors import BundleError
from covey_shared.keyfile import read_public
from covey_shared.manifest import Manifest
from covey_shared.runtimes import version_of

Say = Callable[[str], None]
NAMES = {"onnx": "ONNX Runtime", "executorch": "ExecuTorch", "torch": "PyTorch"}
STEP = 1e-3  # of the gradient's direction, relative to the adapter's norm: small enough to go downhill


def verify(
    folder: Path, keys: Sequence[str], *, run: bool = False, provider: str = "", threads: int = 0, say: Say
) -> int:
    """All checks; returns 0, or raises the first failure as BundleError."""
    trusted = [read_public(text) for text in keys]
    manifest, signatures = _manifest_bytes(folder), read_signatures(folder)
    if trusted:
        by = f"by {require_signer(manifest, signatures, trusted).text}, as required"
    else:
        by = ", ".join(k.text for k in check_all(manifest, signatures))
        by = f"by {by} (not compared with anything: give --key)" if by else "none"
    bundle = Bundle.open(folder)
    total = sum(f.bytes for f in bundle.manifest.files.values())
    say(f"signature   {by}")
    say(f"files       all {len(bundle.manifest.files)} files ({total:,} bytes) are as the manifest states")
    say(f"start       {check_start(bundle):,} finite numbers")
    for runtime in sorted(bundle.manifest.graphs):
        say(f"{runtime:<11} {_check_runtime(bundle, runtime, run, provider, threads, say)}")
    return 0


def _manifest_bytes(folder: Path) -> bytes:
    path = folder / MANIFEST
    return path.read_bytes() if path.is_file() else b""  # Bundle.open has the sentence for a folder that is no bundle


def check_start(bundle: Bundle) -> int:
    """The length of the start vector; raises BundleError where it is not made of numbers."""
    start = bundle.start(bundle.manifest.seed)
    if not np.isfinite(start).all():
        raise BundleError(f"the start of {bundle.folder} holds values that are not numbers: export it again")
    return len(start)


def _check_runtime(bundle: Bundle, runtime: str, run: bool, provider: str, threads: int, say: Say) -> str:
    """One line about a runtime that the bundle has graphs for."""
    missing = missing_modules(runtime)
    if missing:
        return f"not tried: {' and '.join(missing)} not installed here (pip install 'covey[edge,{runtime}]')"
    own = provider if runtime != "executorch" else ""
    graphs, device = open_graphs(bundle, runtime, threads, own, say)
    where = f"{NAMES[runtime]} {version_of(runtime)}" + (f" on {device}" if device else "")
    if not run:
        for role in ("train", "eval", "forward"):
            graphs.load(role)
        return f"{where} opens train, eval and forward"
    return f"{where} {_one_step(open_trainer(bundle, runtime, threads, own, notice=say), bundle)}"


def _one_step(trainer: GraphTrainer, bundle: Bundle) -> str:
    """A training step downhill on random data: the loss must be a number, and smaller after the step."""
    batch = random_batch(bundle.manifest)
    start = bundle.start(bundle.manifest.seed)
    trainer.loss_and_gradient(start, batch)  # the first run pays for what the runtime prepares
    begun = time.perf_counter()
    loss, gradient = trainer.loss_and_gradient(start, batch)
    seconds = time.perf_counter() - begun
    norm = float(np.linalg.norm(gradient))
    if not np.isfinite(loss) or not np.isfinite(norm) or norm == 0:
        raise BundleError(f"a training step gives the loss {loss} and a gradient of norm {norm}: export it again")
    step = np.float32(STEP * max(1.0, float(np.linalg.norm(start))) / norm)
    after, _ = trainer.loss_and_gradient(start - step * gradient, batch)
    if not after < loss:
        raise BundleError(f"the loss goes from {loss:.6f} to {after:.6f} downhill: the gradient is wrong, export again")
    return f"trains: loss {loss:.4f} -> {after:.4f}, gradient norm {norm:.3g}, {1000 * seconds:,.0f} ms a step"


def random_batch(manifest: Manifest) -> Batch:
    """Random inputs of the bundle's shape, with labels that count."""
    rng = np.random.default_rng(0)
    size = manifest.batch_size
    if manifest.image is not None:
        images = rng.standard_normal((size, *manifest.image.shape)).astype(np.float32)
        return Batch(images, rng.integers(0, len(manifest.labels), size))
    ids = rng.integers(0, manifest.text.vocab_size, (size, manifest.seq_len))
    pad = manifest.text.pad_id
    ids = np.where(ids == pad, (pad + 1) % manifest.text.vocab_size, ids)
    if manifest.task == "causal-lm":
        labels = ids.copy()
        labels[:, 0] = IGNORED
        return Batch(ids, labels)
    return Batch(ids, rng.integers(0, len(manifest.labels), size))

"""A bundle as text for people."""

from covey_shared.bundle import Bundle
from covey_shared.manifest import Manifest


def show_bundle(bundle: Bundle) -> str:
    """Model, what trains, files with sizes, and the proof of each runtime."""
    manifest = bundle.manifest
    total = sum(f.bytes for f in manifest.files.values())
    lines = [
        f"{bundle.folder}  ({_size(total)}, {bundle.digest[:12]})",
        f"  model    {manifest.model}, {manifest.architecture}, {manifest.parameters:,} parameters",
        f"  origin   revision {manifest.revision[:19]}, licence {manifest.licence}",
        f"  task     {manifest.task}{_labels(manifest)}, batches of {manifest.batch_size} x {manifest.seq_len} tokens",
        f"  trains   n = {manifest.layout.size:,} numbers ({_size(4 * manifest.layout.size)}) in "
        f"{len(manifest.layout.tensors)} tensors, rank {manifest.rank}, alpha {manifest.alpha:g}, "
        f"on {', '.join(manifest.target_modules)}",
        "",
        "  file                                  size   for",
        *(f"  {name:<32} {_size(f.bytes):>9}   {', '.join(f.targets) or 'all'}" for name, f in manifest.files.items()),
        "",
        "  runtime       loss error   gradient error   peak memory   step",
        *(
            f"  {name:<12} {p.loss_error:>11.1e} {p.gradient_error:>16.1e} {_size(p.peak_bytes):>13}"
            f" {1000 * p.step_seconds:>6,.0f} ms"
            for name, p in sorted(manifest.parity.items())
        ),
        f"  Errors are relative to eager PyTorch on the same batch (tolerance {_tolerance(manifest):.0e}); memory and",
        "  time are those of a training step on the machine that made the bundle.",
    ]
    return "\n".join(lines)


def _labels(manifest: Manifest) -> str:
    return f" ({len(manifest.labels)} labels: {', '.join(manifest.labels[:6])})" if manifest.labels else ""


def _tolerance(manifest: Manifest) -> float:
    return max((p.tolerance for p in manifest.parity.values()), default=0.0)


def _size(size: int) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:,.1f} {unit}"
    return f"{size} B"

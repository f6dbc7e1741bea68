"""A bundle as text for people, and as plain data for programs. Reads the manifest and the signature, nothing else."""

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from covey_shared.bundle import MANIFEST, Bundle
from covey_shared.bundle_signature import check_all, read_signatures
from covey_shared.errors import BundleError
from covey_shared.layout import Layout, Tensor
from covey_shared.manifest import Manifest

PEFT_PREFIX = "base_model.model."  # what every PEFT key begins with


class Group(NamedTuple):
    """Tensors that are alike but for the number of their layer: `module` has `*` where the number stood."""

    kind: str
    module: str
    modules: int
    shapes: str
    rank: str
    numbers: int


def show_bundle(bundle: Bundle, *, layout: bool = False) -> str:
    """Model, what trains, files, and the proof of each runtime; with `layout`, every tensor."""
    manifest = bundle.manifest
    sections = [_head(bundle), _groups(manifest.layout), _files(manifest), _proof(manifest)]
    return "\n\n".join([*sections, _tensors(manifest.layout)] if layout else sections)


def bundle_data(bundle: Bundle) -> dict[str, Any]:
    """Everything that `show` knows, as JSON values: the manifest, and what it does not say of itself."""
    manifest = bundle.manifest
    signers, problem = _signers(bundle)
    return {
        "folder": str(bundle.folder), "digest": bundle.digest, "bytes": _total(manifest),
        "numbers": manifest.layout.size, "signed_by": signers, "signature_problem": problem,
        "layout_groups": [g._asdict() for g in group_layout(manifest.layout)],
        "manifest": json.loads(manifest.to_bytes()),
    }  # fmt: skip


def group_layout(layout: Layout) -> list[Group]:
    """The layout with one row for what is alike: kind, module but for its numbers, shapes and rank.

    The two halves of a LoRA are one row. In the order of the layout.
    """
    rows: dict[tuple[str, str, str, str], list[Tensor]] = {}
    for parts in _modules(layout):
        first = parts[0]
        kind = "lora" if first.kind.startswith("lora_") else first.kind
        shapes = ", ".join(_shape(t) for t in parts)
        key = (kind, re.sub(r"(?<![^.])\d+(?![^.])", "*", _module(first)), shapes, str(first.rank or ""))
        rows.setdefault(key, []).extend(parts)
    groups = []
    for (kind, pattern, shapes, rank), tensors in rows.items():
        modules = {_module(t) for t in tensors}
        name = pattern if len(modules) > 1 else next(iter(modules))
        groups.append(Group(kind, name, len(modules), shapes, rank, sum(t.size for t in tensors)))
    return groups


def _modules(layout: Layout) -> Iterator[list[Tensor]]:
    """The tensors of each module and kind together."""
    found: dict[tuple[str, bool, str], list[Tensor]] = {}
    for tensor in layout.tensors:
        lora = tensor.kind.startswith("lora_")
        found.setdefault((_module(tensor), lora, "" if lora else tensor.kind), []).append(tensor)
    yield from found.values()


def _module(tensor: Tensor) -> str:
    return tensor.module or tensor.name.removeprefix(PEFT_PREFIX).rpartition(".")[0] or tensor.name


def _shape(tensor: Tensor) -> str:
    label = {"lora_A": "A ", "lora_B": "B "}.get(tensor.kind, "")
    return label + "x".join(map(str, tensor.shape))


def _head(bundle: Bundle) -> str:
    manifest = bundle.manifest
    layout = manifest.layout
    lines = [
        f"{bundle.folder}  ({size_text(_total(manifest))}, {bundle.digest[:12]})",
        f"  model      {manifest.model}, {manifest.architecture}, {manifest.parameters:,} parameters",
        f"  origin     revision {manifest.revision[:19]}, licence {manifest.licence}",
        f"  task       {manifest.task}{_labels(manifest)}, batches of {_batch(manifest)}",
        f"  base       {_base(manifest)}",
        f"  trains     n = {layout.size:,} numbers ({size_text(4 * layout.size)}) in {len(layout.tensors)} tensors"
        f"{_lora(manifest)}",
    ]
    if manifest.frozen is not None:
        lines.append(f"  frozen     a second adapter of {manifest.frozen.size:,} numbers is added and not trained")
    return "\n".join([*lines, f"  signature  {_signature(bundle)}"])


def _base(manifest: Manifest) -> str:
    again = "; activations are computed twice and not kept" if manifest.recompute else ""
    q = manifest.quantisation
    if q is None:
        return manifest.precision + again
    scales = f"groups of {q.group}" if q.group else "a scale a row"
    where = "of a sample" if q.measured_on == "sample" else "of the random batch of the proof"
    return (
        f"{manifest.precision} in {scales}, {q.parameters:,} numbers{again}\n"
        f"             loss {q.loss:.4f}, in float32 {q.loss_float32:.4f} ({q.loss_difference:+.4f}), on {q.tokens:,} "
        f"labels {where}"
    )


def _batch(manifest: Manifest) -> str:
    if manifest.image is not None:
        image = manifest.image
        return f"{manifest.batch_size} images of {image.channels} x {image.height} x {image.width}"
    return f"{manifest.batch_size} x {manifest.seq_len} tokens"


def _lora(manifest: Manifest) -> str:
    if not manifest.rank:
        return ""
    ranks = " or ".join(map(str, manifest.ranks))
    return f", rank {ranks}, alpha {manifest.alpha:g}, on {', '.join(manifest.target_modules)}"


def _signers(bundle: Bundle) -> tuple[list[str], str]:
    """The texts of the keys that signed, and what is wrong with the signatures if anything is."""
    try:
        return [k.text for k in check_all((bundle.folder / MANIFEST).read_bytes(), read_signatures(bundle.folder))], ""
    except BundleError as error:
        return [], str(error)


def _signature(bundle: Bundle) -> str:
    signers, problem = _signers(bundle)
    return problem or "\n             ".join(signers) or "none (covey bundle sign)"


def _groups(layout: Layout) -> str:
    groups = group_layout(layout)
    wide = max(len(g.module) for g in groups)
    shapes = max(len(g.shapes) for g in groups)
    lines = [f"  {'kind':<5} {'module':<{wide}}  {'modules':>7}  {'shapes':<{shapes}}  rank     numbers"]
    lines += [
        f"  {g.kind:<5} {g.module:<{wide}}  {g.modules:>7}  {g.shapes:<{shapes}}  {g.rank:>4} {g.numbers:>11,}"
        for g in groups
    ]
    return "\n".join(lines)


def _files(manifest: Manifest) -> str:
    wide = max([len(name) for name in manifest.files] or [4])
    lines = [f"  {'file':<{wide}}       size   for"]
    for name, file in manifest.files.items():
        lines.append(f"  {name:<{wide}}  {size_text(file.bytes):>9}   {', '.join(file.targets) or 'all'}")
    return "\n".join(lines)


def _proof(manifest: Manifest) -> str:
    tolerance = max((p.tolerance for p in manifest.parity.values()), default=0.0)
    lines = ["  runtime       loss error   gradient error   peak memory      step"]
    lines += [
        f"  {name:<12} {p.loss_error:>11.1e} {p.gradient_error:>16.1e} {size_text(p.peak_bytes):>13}"
        f" {1000 * p.step_seconds:>6,.0f} ms"
        for name, p in sorted(manifest.parity.items())
    ]
    return "\n".join([
        *lines,
        f"  Errors are relative to eager PyTorch on the same batch (tolerance {tolerance:.0e}); memory and time are",
        "  those of a training step on the machine that made the bundle.",
    ])  # fmt: skip


def _tensors(layout: Layout) -> str:
    lines = ["  offset        tensor (kind, shape, start)"]
    for tensor, where in layout.slices():
        lines.append(f"  {where.start:<12,}  {tensor.name} ({tensor.kind}, {_plain(tensor.shape)}, {tensor.init})")
    return "\n".join(lines)


def _plain(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _labels(manifest: Manifest) -> str:
    more = ", ..." if len(manifest.labels) > 6 else ""
    return f" ({len(manifest.labels)} labels: {', '.join(manifest.labels[:6])}{more})" if manifest.labels else ""


def _total(manifest: Manifest) -> int:
    return sum(f.bytes for f in manifest.files.values())


def size_text(size: float) -> str:
    """A number of bytes for people.

    >>> size_text(12_345_678)
    '12.3 MB'
    """
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:,.1f} {unit}"
    return f"{size:.0f} B"

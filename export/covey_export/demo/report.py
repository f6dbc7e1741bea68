"""What the demo leaves behind: a table, a plot and `report.json`, all from the same records."""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAVY
from rich.table import Table


@dataclass(frozen=True)
class Device:
    """One device's share of a run. Losses are nats per token on its own held-out text; bytes are bodies on the wire."""

    name: str
    runtime: str
    loss_before: float
    loss_after: float
    upload_bytes: int
    download_bytes: int
    updates: int
    downloads: int


@dataclass(frozen=True)
class Run:
    """One federated run. `history` holds (version, mean held-out loss, bytes up and down so far)."""

    label: str
    rounds: int
    entries: int
    devices: tuple[Device, ...]
    history: tuple[tuple[int, float, int], ...]
    adapter_path: str
    seconds: float

    @property
    def loss_before(self) -> float:
        """Mean over devices."""
        return sum(d.loss_before for d in self.devices) / len(self.devices)

    @property
    def loss_after(self) -> float:
        """Mean over devices."""
        return sum(d.loss_after for d in self.devices) / len(self.devices)

    @property
    def upload_bytes(self) -> int:
        """Bodies of all uploads."""
        return sum(d.upload_bytes for d in self.devices)

    @property
    def download_bytes(self) -> int:
        """Bodies of all adapter downloads; the bundle, which comes once, is not in it."""
        return sum(d.download_bytes for d in self.devices)

    @property
    def dense_upload_bytes(self) -> int:
        """The same updates as bare float32 vectors, no framing."""
        return sum(d.updates for d in self.devices) * self.entries * 4

    @property
    def dense_download_bytes(self) -> int:
        """The same downloads as bare float32 vectors, no framing."""
        return sum(d.downloads for d in self.devices) * self.entries * 4

    @property
    def ratio(self) -> float:
        """Dense float32 bytes over the bytes that crossed, up and down together."""
        return (self.dense_upload_bytes + self.dense_download_bytes) / max(1, self.upload_bytes + self.download_bytes)


def human(count: float) -> str:
    """Bytes in kB or MB, powers of ten."""
    return f"{count / 1e6:.2f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"


def table(run: Run, *, bits: bool) -> Table:
    """The table per device; `bits` converts nats to bits per byte, for a byte-level model."""
    scale, unit = (1 / math.log(2), "bits/byte") if bits else (1.0, "nats/token")
    title = f"{run.label}: held-out loss in {unit}; bytes up, down, and dense float32 both ways"
    out = Table(title=title, title_justify="left", box=SIMPLE_HEAVY, padding=(0, 1, 0, 0), pad_edge=False)
    for name in ("device", "runtime", "before", "after", "change", "up", "down", "dense"):
        out.add_column(name, justify="left" if name in ("device", "runtime") else "right", no_wrap=True)
    for d in run.devices:
        change = d.loss_after / d.loss_before - 1
        dense = (d.updates + d.downloads) * run.entries * 4
        out.add_row(
            d.name, d.runtime, f"{d.loss_before * scale:.3f}", f"{d.loss_after * scale:.3f}",
            f"[{'green' if change < 0 else 'red'}]{change:+.1%}[/]",
            human(d.upload_bytes), human(d.download_bytes), human(dense),
        )  # fmt: skip
    change = run.loss_after / run.loss_before - 1
    out.add_section()
    out.add_row(
        "all", "", f"{run.loss_before * scale:.3f}", f"{run.loss_after * scale:.3f}", f"{change:+.1%}",
        human(run.upload_bytes), human(run.download_bytes), human(run.dense_upload_bytes + run.dense_download_bytes),
    )  # fmt: skip
    return out


def report_data(run: Run, dense: Run | None, extra: dict[str, Any]) -> dict[str, Any]:
    """The content of `report.json`."""
    data: dict[str, Any] = {
        "rounds": run.rounds,
        "clients": len(run.devices),
        "runtimes": sorted({d.runtime for d in run.devices}),
        "loss_before": run.loss_before,
        "loss_after": run.loss_after,
        "per_client": [asdict(d) for d in run.devices],
        "upload_bytes": run.upload_bytes,
        "download_bytes": run.download_bytes,
        "dense_upload_bytes": run.dense_upload_bytes,
        "dense_download_bytes": run.dense_download_bytes,
        "ratio": run.ratio,
        "adapter_path": run.adapter_path,
        "seconds": run.seconds,
        "entries": run.entries,
        "history": [{"version": v, "loss": loss, "bytes": count} for v, loss, count in run.history],
        **extra,
    }
    if dense is not None:
        data["dense"] = report_data(dense, None, {})
        data["loss_over_dense"] = run.loss_after / dense.loss_after
        data["fewer_bytes_than_dense"] = (dense.upload_bytes + dense.download_bytes) / (
            run.upload_bytes + run.download_bytes
        )
    return data


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Written whole or not at all."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(data, indent=1) + "\n")
    partial.replace(path)


def plot(path: Path, runs: list[Run], *, bits: bool) -> None:
    """Held-out loss against bytes up and down together, a line a run; PNG."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    scale, unit = (1 / math.log(2), "bits per byte") if bits else (1.0, "nats per token")
    figure, axes = pyplot.subplots(figsize=(7.5, 4.5), dpi=130, layout="constrained")
    for run in runs:
        points = [(count / 1e6, loss * scale) for _, loss, count in run.history]
        axes.plot([x for x, _ in points], [y for _, y in points], marker="o", markersize=3, label=run.label)
    before = runs[0].loss_before * scale
    axes.axhline(before, color="grey", linewidth=0.8, linestyle="--")
    axes.annotate(
        "base model", (0.99, before), xycoords=("axes fraction", "data"), ha="right", va="bottom", color="grey"
    )
    if len(runs) > 1:
        axes.set_xscale("symlog", linthresh=0.1)
    axes.set_xlabel("bytes on the wire, up and down, all devices (MB)")
    axes.set_ylabel(f"mean held-out loss ({unit})")
    axes.set_title("Held-out loss against communication")
    axes.legend(frameon=False)
    axes.grid(alpha=0.25)
    figure.savefig(path)
    pyplot.close(figure)

"""An adapter in PEFT's own format: `adapter_model.safetensors`, `adapter_config.json`, and `covey.json` on its origin.

The layout's names are PEFT's keys, so writing is slicing and reading is joining: float32 values keep their bits. The
server publishes with this, and devices convert with it. safetensors is imported only here and only when needed.
"""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from covey_shared.bundle import Bundle
from covey_shared.errors import BundleError, LayoutError, UsageError
from covey_shared.layout import Layout, Vector, vector_digest

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
ORIGIN = "covey.json"
BUNDLED_CONFIG = "peft/adapter_config.json"
BUNDLED_CONSTANTS = "peft/constants.safetensors"  # what PEFT wants beside what trains: statistics of batch norms
WHOLE = "weights.safetensors"  # what trains without PEFT, under the base model's own names
MAX_CONFIG = 1 << 20
SCALING = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora")  # what the same numbers mean depends on


def peft_files(bundle: Bundle, layout: Layout, vector: Vector, origin: dict[str, Any]) -> dict[str, bytes]:
    """The folder's files by name. `layout` is the bundle's, or that of one of its lower ranks.

    `origin` (task and version, say) goes into covey.json, with the digests of vector and bundle. A bundle that trains
    whole blocks has no PEFT configuration: its tensors go into one file under the base model's own names, for
    `model.load_state_dict(..., strict=False)`.
    """
    from safetensors.numpy import save

    about = {
        **origin, "digest": vector_digest(vector), "bundle": bundle.digest,
        "model": bundle.manifest.model, "revision": bundle.manifest.revision,
    }  # fmt: skip
    named = {ORIGIN: (json.dumps(about, indent=1) + "\n").encode()}
    if BUNDLED_CONFIG not in bundle.manifest.files:
        return {WHOLE: save(layout.split(vector), {"format": "pt"}), **named}
    weights = save({**layout.split(vector), **constants(bundle)}, {"format": "pt"})
    return {WEIGHTS: weights, CONFIG: peft_config(bundle, layout), **named}


def constants(bundle: Bundle) -> dict[str, NDArray[Any]]:
    """What PEFT's loader wants in the file and no device trains, by PEFT's names."""
    if BUNDLED_CONSTANTS not in bundle.manifest.files:
        return {}
    from safetensors.numpy import load_file

    found: dict[str, NDArray[Any]] = load_file(bundle.folder / BUNDLED_CONSTANTS)
    return found


def peft_config(bundle: Bundle, layout: Layout) -> bytes:
    """The bundle's PEFT configuration, for one of its ranks; raises BundleError when it has none."""
    if BUNDLED_CONFIG not in bundle.manifest.files:
        raise BundleError(
            f"the bundle {bundle.folder} has no {BUNDLED_CONFIG}, which PEFT's format needs: what it trains is no LoRA"
        )
    data = (bundle.folder / BUNDLED_CONFIG).read_bytes()
    if layout == bundle.manifest.layout:
        return data
    config = at_rank(json.loads(data), layout.rank)
    return (json.dumps(config, indent=2, sort_keys=True) + "\n").encode()


def at_rank(config: dict[str, Any], rank: int) -> dict[str, Any]:
    """The configuration of the first `rank` factors. alpha / rank stays, so alpha falls with the rank.

    >>> at_rank({"r": 8, "lora_alpha": 16, "rank_pattern": {"head": 2}, "alpha_pattern": {}}, 4)
    {'r': 4, 'lora_alpha': 8.0, 'rank_pattern': {'head': 2}, 'alpha_pattern': {'head': 16.0}}
    """
    ranks, alphas = config.get("rank_pattern") or {}, config.get("alpha_pattern") or {}
    full, alpha = config["r"], config["lora_alpha"]

    def scaled(pattern: str) -> float:
        own = ranks.get(pattern, full)
        return float(alphas.get(pattern, alpha) * min(own, rank) / own)

    return {
        **config, "r": min(full, rank), "lora_alpha": alpha * min(full, rank) / full,
        "rank_pattern": {name: min(own, rank) for name, own in ranks.items()},
        "alpha_pattern": {name: scaled(name) for name in [*ranks, *(a for a in alphas if a not in ranks)]},
    }  # fmt: skip


def read_weights(path: Path, limit: int, but: Collection[str] = ()) -> dict[str, NDArray[np.float32]]:
    """The tensors of a safetensors file of at most `limit` bytes, float32, by PEFT's names, without those of `but`."""
    from safetensors import SafetensorError, deserialize

    if path.stat().st_size > limit:
        raise LayoutError(f"{path} has {path.stat().st_size:,} bytes, more than an adapter of this bundle can have")
    try:
        views = deserialize(path.read_bytes())  # type: ignore[no-untyped-call]
        return {name: _float32(path, name, view) for name, view in views if name not in but}
    except (SafetensorError, ValueError, KeyError) as error:
        raise UsageError(f"{path} is not a safetensors file: {str(error)[:100]}") from None


def _float32(path: Path, name: str, view: dict[str, Any]) -> NDArray[np.float32]:
    """One tensor. float16 and bfloat16 are exact in float32."""
    kind, data = view["dtype"], view["data"]
    if kind == "BF16":
        wide = np.frombuffer(data, "<u2").astype(np.uint32) << 16
        return wide.view(np.float32).reshape(view["shape"])
    if kind not in ("F32", "F16"):
        raise UsageError(f"{name!r} in {path} is of type {kind}; an adapter holds F32, F16 or BF16")
    return np.frombuffer(data, {"F32": "<f4", "F16": "<f2"}[kind]).astype(np.float32).reshape(view["shape"])


def check_config(path: Path, bundle: Bundle, layout: Layout) -> None:
    """Refuses an adapter_config.json whose rank or alpha is another than the bundle's: the same numbers would be
    another model. One that is not there is taken on trust."""
    if not path.is_file() or BUNDLED_CONFIG not in bundle.manifest.files:
        return
    if path.stat().st_size > MAX_CONFIG:
        raise UsageError(f"{path} is too long to be an adapter's configuration")
    try:
        theirs = json.loads(path.read_bytes())
        different = [k for k in SCALING if (theirs.get(k) or None) != (_ours(bundle, layout).get(k) or None)]
    except (ValueError, RecursionError, AttributeError) as error:
        raise UsageError(f"{path} is not an adapter's configuration: {str(error)[:100]}") from None
    if different:
        key = different[0]
        raise LayoutError(
            f"{path} has {key} {theirs.get(key)!r}, and the bundle {_ours(bundle, layout).get(key)!r}: "
            "the same numbers would be another model"
        )


def _ours(bundle: Bundle, layout: Layout) -> dict[str, Any]:
    config: dict[str, Any] = json.loads(peft_config(bundle, layout))
    return config

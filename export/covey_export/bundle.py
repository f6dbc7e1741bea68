"""The export from beginning to end: load, adapt, trace, write each target, prove each, and name every byte.

Everything is written to a hidden folder beside the bundle's place, which gets the bundle's name as the last thing, so
there is a whole bundle or none.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from covey_export.adapter import Adapted, adapt, stored_start
from covey_export.base import Base, load_base
from covey_export.clean import clean
from covey_export.convolutions import expand_convolutions
from covey_export.graph import Graph, trace
from covey_export.parity import Reference, prove, reference
from covey_export.place import check_place, put, staged
from covey_export.quantise import hold_codes
from covey_export.recipe import CLASSIFICATION, Recipe
from covey_export.recompute import recompute
from covey_export.roles import ROLES
from covey_export.rounding import quantised
from covey_export.targets import writers
from covey_export.tasks import TASKS, example_images, example_tokens
from covey_export.tokens import write_tokenizer
from covey_export.views import plain_views
from covey_shared import __version__
from covey_shared.bundle import MANIFEST, Bundle, file_digest
from covey_shared.bundle_signature import sign_folder
from covey_shared.errors import UsageError
from covey_shared.keys import PrivateKey
from covey_shared.manifest import File, Manifest, Parity, Quantisation, Tokenizer
from covey_shared.peft_folder import BUNDLED_CONFIG, BUNDLED_CONSTANTS

START = "start.f32"
MINIMUM_CLIENT = "0.1.0"
Step = Callable[[str], None]


def stages(recipe: Recipe) -> int:
    """How many times `export` calls `step`; more often where a runtime's graphs have to be written again."""
    return 3 + len(ROLES) + 2 * len(recipe.targets)


def export(
    recipe: Recipe, out: Path, *, force: bool = False, key: PrivateKey | None = None,
    step: Step = lambda name: None,
) -> Bundle:  # fmt: skip
    """Write the bundle of a recipe to `out`, signed if there is a key. `step` is told what begins.

    Raises UsageError, with one sentence, for a model that cannot be had or exported and for a graph that does not
    compute what PyTorch does; nothing is left behind then.
    """
    check_place(out, force)
    with staged(out) as folder:
        manifest = _fill(recipe, folder, step)
        (folder / MANIFEST).write_bytes(manifest.to_bytes())
        if key is not None:
            sign_folder(folder, key)
        put(folder, out)
    return Bundle.open(out)


def _fill(recipe: Recipe, folder: Path, step: Step) -> Manifest:
    step(f"load {recipe.model}")
    base = load_base(recipe)
    _check_room(base, recipe, folder)
    tokenizer = write_tokenizer(base, folder) if base.tokenizer else None
    adapted = adapt(base, recipe)
    if adapted.config is not None:
        _write_adapter_config(adapted, base, folder)
        _write_constants(adapted, folder)
    start = _write_start(adapted, folder)
    task, pad_id = TASKS[recipe.task], tokenizer.pad_id if tokenizer else 0
    batch = _example(base, recipe, pad_id)
    step("run PyTorch")
    rounded, codes = quantised(base, adapted, recipe, batch, pad_id)
    expected = reference(adapted, task, batch, pad_id, recipe.seed)
    graphs: dict[str, Graph] = {}
    for role in ROLES:
        step(f"trace {role}")
        graphs[role] = clean(expand_convolutions(plain_views(trace(role, adapted, task, batch, pad_id))))
        if recipe.recompute and role == "train":
            recompute(graphs[role])
        hold_codes(graphs[role], codes)
    paths: dict[str, dict[str, str]] = {}
    parity: dict[str, Parity] = {}
    for target in recipe.targets:
        paths[target], parity[target] = _write(target, graphs, folder, expected, step)
    step("name every byte")
    return _manifest(recipe, base, adapted, tokenizer, start, rounded, paths, parity, folder)


def _write(
    target: str, graphs: dict[str, Graph], folder: Path, expected: Reference, step: Step
) -> tuple[dict[str, str], Parity]:
    """A target's files by role, in the first way that is proven, and the proof. Raises what the best way came to."""
    failed: UsageError | None = None
    for write in writers(target):
        try:
            step(f"write {target} again" if failed else f"write {target}")
            paths = write(graphs, folder)
            step(f"prove {target}")
            return paths, prove(target, folder, paths, expected)
        except UsageError as error:
            failed = failed or error
    raise failed or UsageError(f"there is no way to write {target}")


def _example(base: Base, recipe: Recipe, pad_id: int) -> dict[str, Tensor]:
    """The batch of the proof and the trace."""
    task, labels = TASKS[recipe.task], base.model.config.num_labels
    if base.image is not None:
        return example_images(task, (recipe.batch_size, *base.image.shape), labels, recipe.seed)
    shape = (recipe.batch_size, recipe.seq_len)
    return example_tokens(task, shape, base.vocabulary, labels, pad_id, recipe.seed)


def _check_room(base: Base, recipe: Recipe, folder: Path) -> None:
    needed = base.parameters * 4 * (len(recipe.targets) + 1)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UsageError(
            f"the bundle needs about {needed / 1e6:,.0f} MB, and {folder.parent} has {free / 1e6:,.0f} MB left"
        )


def _write_adapter_config(adapted: Adapted, base: Base, folder: Path) -> None:
    """What a published adapter's folder needs beside its weights, as PEFT writes it."""
    config = adapted.config.to_dict()
    config |= {"base_model_name_or_path": base.model_id, "inference_mode": True}
    text = json.dumps(config, indent=2, sort_keys=True, default=_plain)
    (folder / BUNDLED_CONFIG).parent.mkdir()
    (folder / BUNDLED_CONFIG).write_text(text + "\n", encoding="utf-8")


def _write_constants(adapted: Adapted, folder: Path) -> None:
    """Statistics that PEFT saves with a batch norm whose weights train; a published adapter carries them unchanged."""
    if adapted.constants:
        save_file(dict(adapted.constants), folder / BUNDLED_CONSTANTS)


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, set | frozenset) else str(value)


def _write_start(adapted: Adapted, folder: Path) -> str:
    stored = stored_start(adapted)
    if not stored.size:
        return ""
    stored.astype("<f4").tofile(folder / START)
    return START


def _manifest(
    recipe: Recipe, base: Base, adapted: Adapted, tokenizer: Tokenizer | None, start: str,
    rounded: Quantisation | None, graphs: dict[str, dict[str, str]], parity: dict[str, Parity], folder: Path,
) -> Manifest:  # fmt: skip
    config = base.model.config
    labels = config.id2label if recipe.task in CLASSIFICATION else {}
    return Manifest(
        covey=__version__, model=base.model_id, revision=base.revision, licence=base.licence,
        architecture=type(base.model).__name__, parameters=base.parameters, task=recipe.task,
        labels=tuple(str(labels[i]) for i in sorted(labels)), batch_size=recipe.batch_size,
        seq_len=0 if base.image else recipe.seq_len, rank=max(recipe.all_ranks, default=0), ranks=recipe.all_ranks,
        alpha=recipe.scaled_alpha if recipe.has_lora else 0.0, target_modules=_target_names(adapted),
        precision=recipe.base, quantisation=rounded, recompute=recipe.recompute,
        seed=recipe.seed, layout=adapted.layout, start=start, frozen=adapted.frozen,
        tokenizer=tokenizer, image=base.image, graphs=graphs, parity=parity,
        minimum_client=MINIMUM_CLIENT, files=_files(folder),
    )  # fmt: skip


def _target_names(adapted: Adapted) -> tuple[str, ...]:
    names = adapted.config.target_modules if adapted.config and adapted.lora else ()
    return (names,) if isinstance(names, str) else tuple(sorted(names))


def _files(folder: Path) -> dict[str, File]:
    """Every file by its path; what lies in a target's folder is for that target alone."""
    out = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(folder).as_posix()
        owner = name.partition("/")[0]
        targets = (owner,) if owner in ("onnx", "executorch", "torch") else ()
        out[name] = File(sha256=file_digest(path), bytes=path.stat().st_size, targets=targets)
    return out

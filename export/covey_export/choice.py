"""Which modules train, and how: patterns from the command line to names of modules.

A name stands for the modules that are called so or end in it (`q_proj`, `self_attn.q_proj`); a pattern with a character
that names do not have is a regular expression for the whole name.
"""

import re
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any, NamedTuple

from torch import nn
from transformers.pytorch_utils import Conv1D

from covey_export.recipe import ALL_CONV, ALL_LINEAR, CLASSIFICATION, NORMS, Recipe
from covey_shared.errors import UsageError

REGEX = set("*+?()[]|^$\\")
LINEAR = (nn.Linear, Conv1D)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORM_NAMES = ("Norm", "Norm1d", "Norm2d", "Norm3d")


class Choice(NamedTuple):
    """`targets`: as PEFT takes them, names or one pattern. `ranks`: module -> rank where it is not the usual one.

    `full`: the modules that train whole.
    """

    targets: list[str] | str
    ranks: dict[str, int]
    full: tuple[str, ...]


def choose(model: Any, recipe: Recipe, fresh: tuple[str, ...]) -> Choice:
    """Resolve a recipe's patterns on a model. `fresh`: modules that must train whole since their weights are new."""
    full = _outermost({*fresh, *_heads(model, recipe), *full_modules(model, recipe.train_full)})
    if not recipe.has_lora:
        return Choice([], {}, full)
    targets = _targets(model, recipe, full)
    matched = _matched(model, targets, full)
    ranks = {name: _rank_of(name, recipe) for name in matched}
    for pattern, _ in recipe.rank_of:
        if not any(_within(pattern, name) for name in matched):
            raise UsageError(f"--rank-of {pattern!r} matches none of the modules that get LoRA: {_few(matched)}")
    odd = {name: rank for name, rank in ranks.items() if rank != recipe.largest_rank}
    return Choice(targets, _compact(odd, matched), full)


def _heads(model: Any, recipe: Recipe) -> list[str]:
    """A classifier's head, which is new to every task: what lies beside the backbone."""
    prefix = getattr(model, "base_model_prefix", "")
    if recipe.task not in CLASSIFICATION or not hasattr(model, prefix):
        return []
    return [name for name, m in model.named_children() if name != prefix and any(True for _ in m.parameters())]


def full_modules(model: Any, patterns: Iterable[str]) -> list[str]:
    """The modules that patterns name; `norms` stands for all normalisation layers."""
    found: list[str] = []
    modules = [(name, m) for name, m in model.named_modules() if name and any(True for _ in m.parameters())]
    for pattern in patterns:
        if pattern == NORMS:
            hits = [name for name, m in modules if is_norm(m)]
        else:
            hits = [name for name, _ in modules if _called(pattern, name)]
        if not hits:
            raise UsageError(
                f"--train-full {pattern!r} matches no module of {type(model).__name__} that has parameters; "
                f"it has {_near(pattern, [n for n, _ in modules])}"
            )
        found += hits
    return found


def is_norm(module: nn.Module) -> bool:
    """A normalisation layer: one of PyTorch's, or one that is called so and holds its parameters itself."""
    named = type(module).__name__.endswith(NORM_NAMES)
    return named and not list(module.children()) and any(True for _ in module.parameters())


def block_names(model: Any, numbers: tuple[int, ...]) -> list[str]:
    """The names of whole blocks: entries of the longest-weighing list of equal modules, as transformers are built."""
    lists = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.ModuleList) and _is_uniform(m)]
    if not lists:
        raise UsageError(f"{type(model).__name__} has no list of equal blocks, so --block has nothing to choose from")
    name, blocks = max(lists, key=lambda item: sum(p.numel() for p in item[1].parameters()))
    for number in numbers:
        if not -len(blocks) <= number < len(blocks):
            raise UsageError(f"--block {number}: {name} has the blocks 0 to {len(blocks) - 1}")
    return [f"{name}.{number % len(blocks)}" for number in numbers]


def _is_uniform(modules: nn.ModuleList) -> bool:
    return len({type(m) for m in modules}) == 1 and any(True for _ in modules.parameters())


def _targets(model: Any, recipe: Recipe, full: tuple[str, ...]) -> list[str] | str:
    wanted = recipe.target_modules
    if len(wanted) == 1 and REGEX & set(wanted[0]):
        return wanted[0]
    groups = {ALL_LINEAR: LINEAR, ALL_CONV: CONVOLUTIONS}
    out: list[str] = []
    for target in wanted:
        if target in groups:
            out += _group(model, target, groups[target], full, recipe)
        else:
            _check_target(model, target)
            out.append(target)
    return sorted(set(out))


def _group(
    model: Any, target: str, kinds: tuple[type[nn.Module], ...], full: tuple[str, ...], recipe: Recipe
) -> list[str]:
    """The modules of these kinds, by as few names as there can be. A network without linear layers has convolutions."""
    found = _of_kind(model, kinds, full, recipe)
    if not found and target == ALL_LINEAR:
        found = _of_kind(model, CONVOLUTIONS, full, recipe)
    if not found:
        raise UsageError(f"{type(model).__name__} has no layers that --target-modules {target} could go into")
    rest = [name for name, _ in model.named_modules() if name and not _inside(name, full)]
    return sorted(_compact(dict.fromkeys(found, 0), rest))


def _of_kind(model: Any, kinds: tuple[type[nn.Module], ...], full: tuple[str, ...], recipe: Recipe) -> list[str]:
    """Layers of some kinds but for the output embedding, which is tied or huge, heads, and grouped convolutions."""
    output = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, kinds)
        and module is not output
        and getattr(module, "groups", 1) == 1
        and not _is_head(name, full, recipe)
    ]


def _is_head(name: str, full: tuple[str, ...], recipe: Recipe) -> bool:
    """Whether PEFT trains the module whole: it looks for heads by how names end, so `pre_classifier` is one too."""
    heads = ("classifier", "score") if recipe.task == "sequence-classification" else ()
    return _inside(name, full) or any(part.endswith(heads) for part in name.split(".") if heads)


def _check_target(model: Any, target: str) -> None:
    names = [name for name, _ in model.named_modules() if name]
    if not any(_called(target, name) for name in names):
        raise UsageError(
            f"--target-modules {target!r} matches no module of {type(model).__name__}; it has {_near(target, names)}"
        )


def _matched(model: Any, targets: list[str] | str, full: tuple[str, ...]) -> list[str]:
    """The modules that PEFT will find for these targets."""
    patterns = [targets] if isinstance(targets, str) else targets
    exact = re.compile(targets) if isinstance(targets, str) else None
    return [
        name
        for name, _ in model.named_modules()
        if name and not _inside(name, full)
        and (exact.fullmatch(name) if exact else any(name == p or name.endswith(f".{p}") for p in patterns))
    ]  # fmt: skip


def _rank_of(name: str, recipe: Recipe) -> int:
    """The rank of a module: the last pattern that fits wins."""
    fitting = [rank for pattern, rank in recipe.rank_of if _within(pattern, name)]
    return fitting[-1] if fitting else recipe.largest_rank


def _called(pattern: str, name: str) -> bool:
    """Whether a pattern names this module: its name, the end of it, or a regular expression for all of it."""
    if REGEX & set(pattern):
        return _compiled(pattern).fullmatch(name) is not None
    return name == pattern or name.endswith(f".{pattern}")


def _within(pattern: str, name: str) -> bool:
    """As `_called`, or the module lies inside one that is called so: `mlp` fits `layers.0.mlp.up_proj`."""
    return _called(pattern, name) or f".{pattern}." in f".{name}"


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise UsageError(f"{pattern!r} is no regular expression: {error}") from None


def _compact(chosen: dict[str, int], among: Iterable[str]) -> dict[str, int]:
    """The same choice by last parts of names, where all modules that end so are chosen alike; full names elsewhere."""
    leaf = {name: name.rpartition(".")[2] for name in (*chosen, *among)}
    values: dict[str, set[int | None]] = {}
    for name, last in leaf.items():
        values.setdefault(last, set()).add(chosen.get(name))
    return {(leaf[n] if len(values[leaf[n]]) == 1 else n): value for n, value in chosen.items()}


def _outermost(names: set[str]) -> tuple[str, ...]:
    """Without those that lie inside another."""
    return tuple(sorted(n for n in names if not _inside(n, tuple(names - {n}))))


def _inside(name: str, modules: tuple[str, ...]) -> bool:
    return any(name == m or name.startswith(f"{m}.") for m in modules)


def _near(pattern: str, names: list[str]) -> str:
    leaves = sorted({n.rpartition(".")[2] for n in names if not n.rpartition(".")[2].isdecimal()})
    return _few(get_close_matches(pattern, leaves, 3, 0.4) or leaves)


def _few(names: list[str]) -> str:
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")

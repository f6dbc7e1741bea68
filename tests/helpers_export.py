"""Tiny models of the families, with random weights and a tokenizer made on the fly."""

from pathlib import Path
from typing import Any

import numpy as np

from covey_export.quiet import quiet
from covey_export.recipe import Recipe
from covey_export.threads import wait_passively
from covey_shared.bundle import Bundle
from covey_shared.manifest import Manifest
from tests.helpers_families import CAUSAL, FAMILIES, IMAGES, IN_THE_WAY, Family

wait_passively()

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefghijklmnopqrstuvwxyz", *(f"w{i}" for i in range(34))]


def family_of(name: str) -> Family:
    """The row of a family, of those that cannot be exported too."""
    return FAMILIES[name] if name in FAMILIES else IN_THE_WAY[name][0]


def save_model(name: str, folder: Path, seed: int = 0, **changes: Any) -> Path:
    """A Hugging Face folder of one family; `changes` override its configuration."""
    with quiet():
        import torch
        import transformers

        family = family_of(name)
        torch.manual_seed(seed)
        config = getattr(transformers, family.config)(**{**family.settings, **changes})
        getattr(transformers, family.model)(config).save_pretrained(folder)
        if family.task != IMAGES:
            save_tokenizer(folder)
    return folder


def save_tokenizer(folder: Path) -> None:
    """A WordPiece tokenizer of a few words, with the usual special tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordPiece({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(folder)


def recipe_of(name: str, model: Path | str, **changes: Any) -> Recipe:
    """The recipe of a family's tiny model, in small shapes."""
    family = family_of(name)
    small = {"rank": 2, "batch_size": 2, "seq_len": 8, "targets": ("onnx",), "task": family.task, **family.recipe}
    return Recipe(model=str(model), **{**small, **changes})


def export_tiny(name: str, folder: Path, **changes: Any) -> Bundle:
    """Save a model of a family in `folder`, and export it there with a recipe that `changes` override."""
    model = family_of(name).built_in or save_model(name, folder / "model")
    return run_export(recipe_of(name, model, **changes), folder / "bundle")


def export_model(model: Path | str, out: Path, **changes: Any) -> Bundle:
    """Export a folder, or a network of ours, in small shapes."""
    small = {"rank": 2, "batch_size": 2, "seq_len": 8, "targets": ("onnx",)}
    return run_export(Recipe(model=str(model), **{**small, **changes}), out)


def run_export(recipe: Recipe, out: Path) -> Bundle:
    """Export, in silence."""
    with quiet():
        from covey_export.bundle import export

        return export(recipe, out)


def batches_of(manifest: Manifest, count: int) -> list[tuple[Any, Any]]:
    """Random batches, inputs and labels; four that come again and again, so that there is something to learn."""
    rng, batch = np.random.default_rng(0), manifest.batch_size

    def one() -> tuple[Any, Any]:
        if manifest.image is not None:
            inputs: Any = rng.standard_normal((batch, *manifest.image.shape)).astype(np.float32)
        else:
            inputs = rng.integers(4, 60, (batch, manifest.seq_len))
        return inputs, inputs.copy() if manifest.task == CAUSAL else rng.integers(0, len(manifest.labels), batch)

    few = [one() for _ in range(4)]
    return [few[i % 4] for i in range(count)]

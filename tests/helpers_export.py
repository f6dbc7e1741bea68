"""Tiny models of many families, with random weights and a tokenizer made on the fly."""

from pathlib import Path
from typing import Any, NamedTuple

from covey_export.quiet import quiet
from covey_export.recipe import Recipe
from covey_export.threads import wait_passively
from covey_shared.bundle import Bundle

wait_passively()

SHAPE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefghijklmnopqrstuvwxyz", *(f"w{i}" for i in range(34))]
VOCABULARY = 80  # more than the words: some families' tokenizers add tokens of their own
SMALL = {"vocab_size": VOCABULARY, "max_position_embeddings": 64, "pad_token_id": 0}
GROUPED = {"num_key_value_heads": 2}
CAUSAL, CLASSIFIER, IMAGES = "causal-lm", "sequence-classification", "image-classification"


class Family(NamedTuple):
    """A row of the table: configuration class, model class, task, and the configuration.

    `quick`: exported in the ordinary suite too, and not only in the slow one. `recipe`: what its export needs beside
    the task. `built_in`: a network of ours in place of a folder.
    """

    config: str
    model: str
    task: str
    settings: dict[str, Any]
    quick: bool = False
    recipe: dict[str, Any] = {}  # noqa: RUF012  never written to
    built_in: str = ""


def _causal(name: str, **settings: Any) -> Family:
    return Family(f"{name}Config", f"{name}ForCausalLM", CAUSAL, {**SHAPE, **SMALL, **settings})


def _classifier(name: str, **settings: Any) -> Family:
    return Family(
        f"{name}Config", f"{name}ForSequenceClassification", CLASSIFIER, {**SHAPE, **SMALL, "num_labels": 3, **settings}
    )


def _images(name: str, **settings: Any) -> Family:
    return Family(f"{name}Config", f"{name}ForImageClassification", IMAGES, {"num_labels": 3, **settings})


VISION = {**SHAPE, "image_size": 16, "patch_size": 8}
FAMILIES = {
    "llama": _causal("Llama", **GROUPED),
    "llama-tied-with-biases": _causal("Llama", num_key_value_heads=1, tie_word_embeddings=True, attention_bias=True),
    "qwen2": _causal("Qwen2", **GROUPED)._replace(quick=True),
    "qwen3": _causal("Qwen3", **GROUPED, head_dim=8),
    "mistral": _causal("Mistral", **GROUPED, sliding_window=4),
    "gemma2": _causal("Gemma2", **GROUPED, head_dim=8, num_hidden_layers=2, sliding_window=4),
    "gemma3": _causal("Gemma3", **GROUPED, head_dim=8)._replace(config="Gemma3TextConfig"),
    "phi3": _causal("Phi3", **GROUPED),
    "gpt2": Family(
        "GPT2Config", "GPT2LMHeadModel", CAUSAL,
        {"n_embd": 32, "n_layer": 1, "n_head": 4, "n_positions": 64, "vocab_size": VOCABULARY, "pad_token_id": 0,
         "bos_token_id": 2, "eos_token_id": 3},
    ),
    "bert": _classifier("Bert"),
    "roberta": _classifier("Roberta", pad_token_id=1),
    "distilbert": _classifier("DistilBert", dim=32, hidden_dim=48, n_layers=1, n_heads=4)._replace(quick=True),
    "llama-classifier": _classifier("Llama", **GROUPED),
    "vit": _images("ViT", **VISION),
    "resnet": _images(
        "ResNet", embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"
    )._replace(recipe={"image": (3, 16, 16), "train_full": ("norms",)}),
    "covey-resnet8": Family(
        "", "", IMAGES, {}, quick=True, recipe={"image": (3, 8, 8), "num_labels": 3}, built_in="covey:resnet8"
    ),
}  # fmt: skip
# What cannot be exported, and the part of the model that the sentence names.
IN_THE_WAY = {
    "longformer": (
        _classifier("Longformer", attention_window=4),
        r"LongformerSelfAttention \(modeling_longformer\.py:\d+\)",
    ),
}


def save_model(name: str, folder: Path, seed: int = 0, **changes: Any) -> Path:
    """A Hugging Face folder of one family; `changes` override its configuration."""
    with quiet():
        import torch
        import transformers

        family = FAMILIES[name] if name in FAMILIES else IN_THE_WAY[name][0]
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


def export_tiny(name: str, folder: Path, **changes: Any) -> Bundle:
    """Save a model of a family in `folder`, and export it there with a recipe that `changes` override."""
    family = FAMILIES[name] if name in FAMILIES else IN_THE_WAY[name][0]
    model = family.built_in or save_model(name, folder / "model")
    return export_model(model, folder / "bundle", **{"task": family.task, **family.recipe, **changes})


def export_model(model: Path | str, out: Path, **changes: Any) -> Bundle:
    """Export a folder, or a network of ours, in small shapes."""
    recipe = Recipe(**{"model": str(model), "rank": 2, "batch_size": 2, "seq_len": 8, "targets": ("onnx",), **changes})
    with quiet():
        from covey_export.bundle import export

        return export(recipe, out)

"""The base model: found, loaded in float32 with plain attention, and described."""

import hashlib
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers

from covey_export import resnets
from covey_export.choice import full_modules
from covey_export.pictures import image_of
from covey_export.recipe import CLASSIFICATION, NORMS, Recipe
from covey_export.tasks import TASKS
from covey_shared.errors import UsageError
from covey_shared.manifest import Image


class Base(NamedTuple):
    """A loaded base model. `fresh` names the modules whose weights the checkpoint lacks: a new head, say.

    A model of text has a `tokenizer`, one of images has `image`.
    """

    model: Any
    tokenizer: Any
    source: str
    model_id: str
    revision: str
    licence: str
    parameters: int
    fresh: tuple[str, ...]
    image: Image | None = None

    @property
    def vocabulary(self) -> int:
        """Rows of the embedding: every token is below it."""
        return int(self.model.get_input_embeddings().weight.shape[0])


def load_base(recipe: Recipe) -> Base:
    """Load from a folder or the hub. The weights are read as safetensors, and no code of the model's own is run."""
    if recipe.model.startswith(resnets.PREFIX):
        return _built_in(recipe)
    source = _source(recipe.model)
    try:
        config = transformers.AutoConfig.from_pretrained(source, **_head(recipe))
        _check_kind(config, recipe)
        torch.manual_seed(recipe.seed)
        model, info = getattr(transformers, TASKS[recipe.task].auto_class).from_pretrained(
            source, config=config, dtype=torch.float32, attn_implementation="eager",
            use_safetensors=True, output_loading_info=True, ignore_mismatched_sizes=True,
        )  # fmt: skip
        image = image_of(recipe, config, source) if recipe.task == "image-classification" else None
        tokenizer = None if image else transformers.AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError, ImportError, KeyError, RuntimeError) as error:
        raise UsageError(_why_not(recipe, error)) from None
    model.eval()
    model.config.use_cache = False
    if tokenizer is not None:
        _settle_padding(model, tokenizer, recipe)
    if recipe.task in CLASSIFICATION and model.config.num_labels < 2:
        raise UsageError(f"{recipe.model} is a regression head with one output; pass --num-labels for a classifier")
    return Base(
        model=model, tokenizer=tokenizer, source=source, model_id=recipe.model_id or _name(recipe.model),
        revision=_revision(source, config), licence=_licence(source),
        parameters=sum(p.numel() for p in model.parameters()), fresh=_fresh(model, info, recipe),
        image=image,
    )  # fmt: skip


def _built_in(recipe: Recipe) -> Base:
    """One of our own networks: random convolutions that stay so, and new norms and a new head, which train."""
    name = recipe.model.removeprefix(resnets.PREFIX)
    if name not in resnets.NETWORKS or recipe.task != "image-classification":
        known = ", ".join(resnets.PREFIX + n for n in resnets.NETWORKS)
        raise UsageError(f"the networks of our own are {known}, for --task image-classification; not {recipe.model}")
    channels, *sides = recipe.image or (3, 32, 32)
    model = resnets.build(name, channels=channels, labels=recipe.label_count or 10, seed=recipe.seed)
    if recipe.labels:
        model.config.id2label = dict(enumerate(recipe.labels))
    model.config.image_size = sides
    return Base(
        model=model, tokenizer=None, source="", model_id=recipe.model_id or recipe.model,
        revision=f"seed:{recipe.seed}", licence="apache-2.0", parameters=sum(p.numel() for p in model.parameters()),
        fresh=(*full_modules(model, (NORMS,)), "classifier"), image=image_of(recipe, model.config),
    )  # fmt: skip


def _source(model: str) -> str:
    """The folder, or the hub id as it is; what looks like a path and is no folder is refused."""
    path = Path(model).expanduser()
    if (path / "config.json").is_file():
        return str(path)
    if path.is_dir():
        raise UsageError(f"{model} is not a Hugging Face model: it has no config.json")
    if path.exists() or model.startswith((".", "/", "~")) or model.count("/") > 1:
        raise UsageError(
            f"there is no folder {model}; give a Hugging Face folder, or a hub id such as HuggingFaceTB/SmolLM2-135M"
        )
    return model


def _head(recipe: Recipe) -> dict[str, Any]:
    """Settings of a classification head. Without --num-labels the checkpoint's own number stands."""
    if recipe.task not in CLASSIFICATION:
        return {}
    out: dict[str, Any] = {"problem_type": "single_label_classification"}
    if recipe.label_count:
        out["num_labels"] = recipe.label_count
    if recipe.labels:
        out["id2label"] = dict(enumerate(recipe.labels))
        out["label2id"] = {name: i for i, name in enumerate(recipe.labels)}
    return out


def _check_kind(config: Any, recipe: Recipe) -> None:
    """Refuse what is known not to work, before the weights are read."""
    if getattr(config, "is_encoder_decoder", False):
        raise UsageError(
            f"{recipe.model} is an encoder with a decoder ({config.model_type}), and covey exports causal language "
            "models and classifiers; take a decoder-only model, or an encoder with --task sequence-classification"
        )
    if recipe.task == "image-classification":
        return
    text = config.get_text_config()
    most = getattr(text, "max_position_embeddings", None) or getattr(text, "n_positions", None)
    if config.model_type in ("roberta", "xlm-roberta", "camembert") and most:
        most -= config.pad_token_id + 1  # their positions start after the padding's
    if most and 0 < most < recipe.seq_len:
        raise UsageError(f"--seq-len is {recipe.seq_len}, but {recipe.model} has positions for {most} tokens only")


def _why_not(recipe: Recipe, error: Exception) -> str:
    """One sentence out of the several screens that transformers has for what can go wrong."""
    if isinstance(error, UsageError):
        return str(error)
    text = " ".join(str(error).split())
    if Path(recipe.model).expanduser().is_dir():
        return f"{recipe.model} cannot be loaded for {recipe.task}: {_first_sentence(text)}"
    return (
        f"{recipe.model!r} is neither a folder here nor to be had from the Hugging Face hub ({type(error).__name__}); "
        f"check the name and the network, or copy the model's folder here and give its path"
    )


def _first_sentence(text: str) -> str:
    return re.split(r"(?<=[.:;]) ", text, maxsplit=1)[0][:300].rstrip(".:;")


def _settle_padding(model: Any, tokenizer: Any, recipe: Recipe) -> None:
    """A classifier finds the end of a row by the padding token, so it must have one."""
    config = model.config.get_text_config()
    if getattr(config, "pad_token_id", None) is None:
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        if pad is None and recipe.task == "sequence-classification":
            raise UsageError(f"{recipe.model} has no padding token; name one as pad_token_id in its config.json")
        config.pad_token_id = 0 if pad is None else pad


def _fresh(model: Any, info: dict[str, Any], recipe: Recipe) -> tuple[str, ...]:
    """The head's modules among what the checkpoint lacks or has in another size, a head for other labels say.

    Anything else means that it is another kind of model.
    """
    missing = {*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])}
    backbone = f"{model.base_model_prefix}."
    alien = sorted(k for k in missing if k.startswith(backbone) and ".pooler." not in k)
    if alien or (missing and recipe.task == "causal-lm"):
        first = (alien or sorted(missing))[0]
        raise UsageError(
            f"{recipe.model} is not a whole {type(model).__name__}: its weights lack {first!r} or have it in another "
            f"size; is it a model for {recipe.task}?"
        )
    owners = {k.rpartition(".")[0] if k.startswith(backbone) else k.partition(".")[0] for k in missing}
    return tuple(sorted(owners))


def _name(model: str) -> str:
    path = Path(model).expanduser()
    return path.resolve().name if path.is_dir() else model


def _revision(source: str, config: Any) -> str:
    """The hub's commit, or a digest of the weights of a folder."""
    if commit := getattr(config, "_commit_hash", None):
        return str(commit)
    digest = hashlib.sha256()
    for path in sorted(Path(source).glob("*.safetensors")):
        with path.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return f"sha256:{digest.hexdigest()}"


def _licence(source: str) -> str:
    """What the model card's front matter states."""
    path = Path(source) / "README.md"
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    front = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
    found = re.search(r"^license:\s*(\S+)", front.group(1), re.MULTILINE) if front else None
    return found.group(1) if found else "unknown"

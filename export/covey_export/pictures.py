"""What an image model takes: shape and normalisation, from its own files or from the command line."""

from typing import Any

from covey_export.recipe import Recipe
from covey_shared.errors import UsageError
from covey_shared.manifest import Image

USUAL_SIDE = 224  # of a model that does not say, as models of ImageNet are


def image_of(recipe: Recipe, config: Any, source: str = "") -> Image:
    """The command line's word first, then the model's configuration, then its preprocessor; mean and std 0.5 at last.

    `source`: where the model's files are, if it has any.
    """
    preprocessor = _preprocessor(source) if source else {}
    size = getattr(config, "image_size", None) or preprocessor.get("size")
    channels, height, width = recipe.image or (int(getattr(config, "num_channels", 3)), *_sides(size))
    mean, std = _normalisation(preprocessor, channels)
    mean, std = (recipe.image_mean or mean), (recipe.image_std or std)
    if not len(mean) == len(std) == channels or min(std) <= 0:
        raise UsageError(f"--image-mean and --image-std need {channels} numbers each, those of --image-std positive")
    return Image(channels=channels, height=height, width=width, mean=mean, std=std)


def _sides(size: Any) -> tuple[int, int]:
    """Height and width from a number, a pair, or a preprocessor's words."""
    size = size or USUAL_SIDE
    if isinstance(size, dict):
        side = size.get("shortest_edge") or USUAL_SIDE
        size = (size.get("height") or side, size.get("width") or side)
    height, width = size if isinstance(size, list | tuple) else (size,) * 2
    return int(height), int(width)


def _normalisation(preprocessor: dict[str, Any], channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """For pixels as they are / 255, whatever factor the preprocessor has."""
    half = (0.5,) * channels
    if not preprocessor.get("do_normalize", True):
        mean, std = (0.0,) * channels, (1.0,) * channels
    else:
        mean, std = (tuple(map(float, preprocessor.get(k) or half)) for k in ("image_mean", "image_std"))
    factor = 255 * float(preprocessor.get("rescale_factor") or 1 / 255) if preprocessor.get("do_rescale", True) else 255
    return tuple(m / factor for m in mean), tuple(s / factor for s in std)


def _preprocessor(source: str) -> dict[str, Any]:
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        found, _ = ImageProcessingMixin.get_image_processor_dict(source)
    except (OSError, ValueError):
        return {}
    return dict(found)

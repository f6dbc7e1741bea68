"""Images as a device's data: one `.npz` of arrays, or a folder with a sub-folder for each class.

They are held as bytes, uint8 [N, H, W, C], and become numbers a batch at a time. An `.npz` needs nothing but NumPy; a
folder of PNG and JPEG files needs Pillow. Whatever a file claims is checked before memory is taken for it.
"""

import math
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from covey_edge.data import Batch, class_of
from covey_edge.texts import skipped_sentence
from covey_shared.errors import UsageError
from covey_shared.manifest import Image

MAX_BYTES = 1 << 28  # of all images as they are held
MAX_SIDE = 1 << 14  # of one picture before it is scaled down
SUFFIXES = (".png", ".jpg", ".jpeg")
LUMINANCE = np.array([299, 587, 114])  # ITU-R BT.601, in thousandths


@dataclass(frozen=True)
class ImageExamples:
    """`pixels` uint8 [N, H, W, C]; `classes` int64 [N]; `image` says how pixels become numbers."""

    pixels: NDArray[np.uint8]
    classes: NDArray[np.int64]
    image: Image

    @property
    def count(self) -> int:
        """N, the number of examples."""
        return len(self.classes)

    def take(self, where: NDArray[np.int64]) -> "ImageExamples":
        """The examples at these positions."""
        return ImageExamples(self.pixels[where], self.classes[where], self.image)

    def batch(self, where: NDArray[np.int64]) -> Batch:
        """These examples, (pixel / 255 - mean) / std, float32 [B, C, H, W]."""
        return Batch(normalise(self.pixels[where], self.image), self.classes[where])


class Pictures(NamedTuple):
    """What was read, and one sentence about what was left out."""

    examples: ImageExamples
    skipped: str


def normalise(pixels: NDArray[np.uint8], image: Image) -> NDArray[np.float32]:
    """uint8 [N, H, W, C] as the model takes it: float32 [N, C, H, W]."""
    scale = 1 / (255 * np.asarray(image.std))
    shift = np.asarray(image.mean) / np.asarray(image.std)
    out = pixels * scale.astype(np.float32) - shift.astype(np.float32)
    return np.ascontiguousarray(out.transpose(0, 3, 1, 2), np.float32)


def read_images(path: Path, image: Image, labels: tuple[str, ...]) -> Pictures:
    """All images at `path` in the bundle's shape. Raises UsageError when there are none or a file is not sound."""
    if path.is_dir():
        return read_folder(path, image, labels)
    if path.suffix != ".npz":
        raise UsageError(f"{path} is no .npz file and no folder of images: this task needs images, see docs/client.md")
    return Pictures(read_npz(path, image, labels), "")


def read_npz(path: Path, image: Image, labels: tuple[str, ...]) -> ImageExamples:
    """`images` uint8 [N, H, W] or [N, H, W, C] and `labels` [N], numbers or names; without pickles."""
    try:
        with zipfile.ZipFile(path) as archive:
            pixels, named = (_read_array(archive, path, name) for name in ("images", "labels"))
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError) as error:
        raise UsageError(f"{path} is not a whole .npz file: {str(error)[:200]}") from None
    if pixels.dtype != np.uint8 or pixels.ndim not in (3, 4) or pixels.shape[3:] not in ((), (1,), (3,)):
        raise UsageError(
            f"{path} has images {pixels.dtype} {list(pixels.shape)}, expected uint8 [N, height, width] or [N, height, "
            "width, 3]"
        )
    if pixels.shape[1:3] != (image.height, image.width):
        raise UsageError(
            f"{path} has images of {pixels.shape[1]} x {pixels.shape[2]} pixels, this task's are {image.height} x "
            f"{image.width}: scale them, or export the bundle with --image"
        )
    if named.shape != pixels.shape[:1] or named.dtype.kind not in "iuU":
        raise UsageError(f"{path} has labels {named.dtype} {list(named.shape)} for {len(pixels)} images")
    classes = [class_of(c, f"image {i} of {path}", labels) for i, c in enumerate(named.tolist())]
    return ImageExamples(_channels(pixels, image.channels), np.array(classes, np.int64), image)


def _read_array(archive: zipfile.ZipFile, path: Path, name: str) -> NDArray[Any]:
    """One array of an .npz, if what its header says is what is there."""
    try:
        member = archive.getinfo(f"{name}.npy")
    except KeyError:
        raise UsageError(f"{path} has no array {name!r}; images and labels are needed") from None
    if member.file_size > MAX_BYTES:
        raise UsageError(f"{path} holds more than {MAX_BYTES >> 20} MB of {name}: take a part of it")
    with archive.open(member) as stream:
        try:
            shape, fortran, dtype = _header(stream)
        except ValueError as error:
            raise UsageError(f"{path}: the array {name!r} is damaged: {str(error)[:200]}") from None
        size = math.prod(shape) * dtype.itemsize
        data = stream.read(min(size, MAX_BYTES) + 1)
    if dtype.hasobject or len(data) != size:
        raise UsageError(f"{path}: the array {name!r} is damaged: it is not what its header says")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = npy.read_magic(stream)
    if version == (1, 0):
        return npy.read_array_header_1_0(stream)
    if version == (2, 0):
        return npy.read_array_header_2_0(stream)
    raise ValueError(f"arrays of format {version} are not read")


def _channels(pixels: NDArray[np.uint8], channels: int) -> NDArray[np.uint8]:
    """[N, H, W] or [N, H, W, C] as [N, H, W, channels]: grey repeated, or colour weighed to grey."""
    pixels = pixels[..., None] if pixels.ndim == 3 else pixels
    if pixels.shape[3] == channels:
        return pixels
    if channels == 1:
        return np.asarray((pixels @ LUMINANCE + 500) // 1000, np.uint8)[..., None]
    return np.repeat(pixels, channels, axis=3)


def read_folder(path: Path, image: Image, labels: tuple[str, ...]) -> Pictures:
    """PNG and JPEG files below `path/CLASS/`, scaled to the bundle's size; others are left out with the reason."""
    if find_spec("PIL") is None:
        raise UsageError(f"{path} is a folder, whose images need Pillow: pip install 'covey[images]', or give one .npz")
    found: list[tuple[NDArray[np.uint8], int]] = []
    skipped: list[tuple[str, str]] = []
    room = MAX_BYTES // math.prod(image.shape)
    for file, number in _classed(path, labels):
        pixels, reason = _open_picture(file, image) if len(found) < room else (None, f"beyond {MAX_BYTES >> 20} MB")
        if pixels is None:
            skipped.append((str(file.relative_to(path)), reason))
        else:
            found.append((pixels, number))
    if not found:
        raise UsageError(f"{path} holds no images in folders by class: {skipped_sentence(skipped) or 'it is empty'}")
    pixels, classes = np.stack([p for p, _ in found]), np.array([c for _, c in found], np.int64)
    return Pictures(ImageExamples(_channels(pixels, image.channels), classes, image), skipped_sentence(skipped))


def _classed(path: Path, labels: tuple[str, ...]) -> Iterator[tuple[Path, int]]:
    """Each file in a class's folder, at any depth, with the class's number, in the order of names."""
    for folder in sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith((".", "__"))):
        number = class_of(folder.name, f"the folder {folder}", labels)
        for file in sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".")):
            yield file, number


def _open_picture(file: Path, image: Image) -> tuple[NDArray[np.uint8] | None, str]:
    """uint8 [H, W] or [H, W, 3], or None and why not."""
    from PIL import Image as Pillow
    from PIL import ImageOps

    if file.suffix.lower() not in SUFFIXES:
        return None, "not PNG or JPEG"
    try:
        with Pillow.open(file, formats=("PNG", "JPEG")) as opened:
            if max(opened.size) > MAX_SIDE:  # before anything is decoded
                return None, f"wider or higher than {MAX_SIDE} pixels"
            upright = ImageOps.exif_transpose(opened).convert("L" if image.channels == 1 else "RGB")
            return np.asarray(upright.resize((image.width, image.height), Pillow.Resampling.BILINEAR)), ""
    except (OSError, ValueError, SyntaxError, Pillow.DecompressionBombError, Pillow.DecompressionBombWarning):
        return None, "damaged"

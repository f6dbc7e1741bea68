"""Images as a device's data: what is read, what it becomes, and what is refused with one sentence."""

import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from covey_edge import images
from covey_edge.data import IGNORED, batch_of, evaluation_batches, training_batch
from covey_edge.images import ImageExamples, normalise, read_images
from covey_edge.sources import read_source
from covey_shared.errors import UsageError
from covey_shared.manifest import Image
from tests.helpers_edge import manifest_of

RGB = Image(channels=3, height=4, width=6, mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 1.0))
GREY = Image(channels=1, height=4, width=6, mean=(0.5,), std=(0.5,))
LABELS = ("cat", "owl")


def pixels(*shape: int) -> Any:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def npz(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def test_numbers_of_a_pixel() -> None:
    out = normalise(np.array([[[[255, 0, 51]]]], np.uint8), RGB)
    assert out.shape == (1, 3, 1, 1)
    np.testing.assert_allclose(out.reshape(-1), [1.0, -1.0, 0.2], atol=1e-6)
    assert out.dtype == np.float32
    assert out.flags.c_contiguous


@pytest.mark.parametrize("labels", [np.array([0, 1, 1]), np.array(["cat", "owl", "1"]), np.array([0, 1, 1], np.uint8)])
def test_arrays(labels: Any, tmp_path: Path) -> None:
    given = pixels(3, 4, 6, 3)
    examples = read_images(npz(tmp_path / "d.npz", images=given, labels=labels), RGB, LABELS).examples
    assert examples.count == 3
    assert examples.classes.tolist() == [0, 1, 1]
    batch = examples.take(np.array([2, 0])).batch(np.array([1]))
    np.testing.assert_array_equal(batch.inputs, normalise(given[:1], RGB))
    assert batch.labels.tolist() == [0]


def test_grey_and_colour(tmp_path: Path) -> None:
    grey = pixels(2, 4, 6)
    colour = read_images(npz(tmp_path / "g.npz", images=grey, labels=[0, 1]), RGB, LABELS).examples
    assert (colour.pixels == grey[..., None]).all()
    white = np.full((1, 4, 6, 3), 255, np.uint8)
    one = read_images(npz(tmp_path / "w.npz", images=white, labels=[0]), GREY, LABELS).examples
    assert one.pixels.shape == (1, 4, 6, 1)
    assert (one.pixels == 255).all()


def test_batches_and_the_part_held_out(tmp_path: Path) -> None:
    """Labels of rows that only fill a batch do not count, as for text."""
    path = npz(tmp_path / "d.npz", images=pixels(11, 4, 6, 3), labels=np.arange(11) % 2)
    manifest = manifest_of(task="image-classification", tokenizer=None, image=RGB, seq_len=0, labels=LABELS)
    data = read_source(path, manifest, 0.3).dataset(tmp_path)
    assert (data.train.count, data.heldout.count) == (8, 3)
    assert training_batch(data.train, 4, 1, 0).inputs.shape == (4, 3, 4, 6)
    (only,) = evaluation_batches(data.heldout, 4, 0)
    assert (only.labels == IGNORED).sum() == 1
    short = batch_of(data.train, np.array([5]), 4)
    assert short.labels[1:].tolist() == [IGNORED] * 3
    np.testing.assert_array_equal(short.inputs[3], short.inputs[0])
    with pytest.raises(UsageError, match="too little data: it makes 1 labelled images"):
        read_source(npz(path, images=pixels(1, 4, 6), labels=[0]), manifest, 0.3).dataset(tmp_path)
    with pytest.raises(UsageError, match="there is nothing at"):
        read_source(tmp_path / "none", manifest, 0.3)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"images": np.zeros((2, 4, 6))}, "has images float64 [2, 4, 6], expected uint8"),
    ({"images": np.zeros((2, 4, 6, 2), np.uint8)}, "has images uint8 [2, 4, 6, 2], expected uint8"),
    ({"images": np.zeros((4, 6), np.uint8)}, "has images uint8 [4, 6], expected uint8"),
    ({"images": np.zeros((2, 5, 6), np.uint8)}, "has images of 5 x 6 pixels, this task's are 4 x 6: scale them, or"),
    ({"labels": np.array([0])}, "has labels int64 [1] for 2 images"),
    ({"labels": np.array([0.0, 1.0])}, "has labels float64 [2] for 2 images"),
    ({"labels": np.array(["cat", "dog"])}, "image 1 of {path} has the label 'dog', this task has the classes 0 to 1"),
    ({"labels": np.array([0, 2])}, "has the label 2"),
    ({"labels": np.array([0, -1])}, "has the label -1"),
    ({"images": None}, "has no array 'images'; images and labels are needed"),
]


@pytest.mark.parametrize(("change", "sentence"), WRONG)
def test_wrong_arrays(change: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    arrays = {"images": np.zeros((2, 4, 6), np.uint8), "labels": np.array([0, 1]), **change}
    path = npz(tmp_path / "d.npz", **{k: v for k, v in arrays.items() if v is not None})
    with pytest.raises(UsageError) as error:
        read_images(path, RGB, LABELS)
    assert sentence.replace("{path}", str(path)) in str(error.value)
    assert "\n" not in str(error.value)


def member(shape: str, body: bytes, descr: str = "'|u1'") -> bytes:
    """An .npy file whose header says what it likes."""
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(118) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + body


def archive(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        for name, data in members.items():
            out.writestr(f"{name}.npy", data)
    return path


SOUND = {"images": member("(2, 4, 6)", bytes(48)), "labels": member("(2,)", bytes(16), "'<i8'")}
HOSTILE: list[tuple[dict[str, bytes], str]] = [
    ({"images": member("(1000000000000, 4, 6)", bytes(48))}, "is not what its header says"),
    ({"images": member("(-2, 4, 6)", bytes(48))}, "damaged"),
    ({"images": member("(2, 4, 6)", bytes(47))}, "is not what its header says"),
    ({"images": member("(2, 4, 6)", bytes(49))}, "is not what its header says"),
    ({"labels": member("(2,)", b"\x80\x04N.", "'|O'")}, "is not what its header says"),
    ({"images": member("__import__('os')", bytes(48))}, "is damaged"),
    ({"images": b"\x93NUMPY\x09\x00"}, "arrays of format (9, 0) are not read"),
    ({"images": b""}, "is damaged"),
    ({"images": b"GIF89a"}, "is damaged"),
]


@pytest.mark.parametrize(("change", "sentence"), HOSTILE)
def test_hostile_arrays(change: dict[str, bytes], sentence: str, tmp_path: Path) -> None:
    path = archive(tmp_path / "d.npz", **{**SOUND, **change})
    with pytest.raises(UsageError) as error:
        read_images(path, RGB, LABELS)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_a_bomb_is_not_unpacked(tmp_path: Path) -> None:
    path = archive(tmp_path / "d.npz", **{**SOUND, "images": member("(2, 4, 6)", bytes(images.MAX_BYTES))})
    assert path.stat().st_size < 1 << 20
    with pytest.raises(UsageError, match="holds more than 256 MB of images: take a part of it"):
        read_images(path, RGB, LABELS)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_bytes_are_refused_or_sound(data: st.DataObject, tmp_path: Path) -> None:
    path = archive(tmp_path / "d.npz", **SOUND)
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw[: data.draw(st.integers(0, len(raw)))])
    try:
        found = read_images(path, RGB, LABELS).examples
    except UsageError:
        return
    assert found.pixels.shape == (2, 4, 6, 3)


def test_other_files_are_no_images(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(UsageError, match=r"no \.npz file and no folder of images"):
        read_images(tmp_path / "notes.txt", RGB, LABELS)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two cats and an owl, of other sizes than the task's."""
    pillow = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    for name, shade, size in (("cat/a.png", 10, (12, 8)), ("cat/deep/b.JPG", 20, (6, 4)), ("owl/c.jpeg", 200, (3, 3))):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        pillow.new("RGB", size, (shade,) * 3).save(tmp_path / name, "PNG" if name.endswith("png") else "JPEG")
    return tmp_path


def test_a_folder_for_each_class(folder: Path) -> None:
    found = read_images(folder, RGB, LABELS)
    assert found.skipped == ""
    assert found.examples.classes.tolist() == [0, 0, 1]
    assert found.examples.pixels.shape == (3, 4, 6, 3)
    assert [int(p.mean()) for p in found.examples.pixels] == pytest.approx([10, 20, 200], abs=2)
    assert read_images(folder, GREY, LABELS).examples.pixels.shape == (3, 4, 6, 1)


def test_what_a_folder_leaves_out(folder: Path) -> None:
    (folder / "cat/broken.png").write_bytes((folder / "cat/a.png").read_bytes()[:40])
    (folder / "cat/notes.txt").write_text("mine")
    (folder / "cat/gif.png").write_bytes(b"GIF89a")
    (folder / "cat/.hidden.png").write_bytes(b"")
    found = read_images(folder, RGB, LABELS)
    assert found.examples.count == 3
    assert found.skipped == (
        "skipped 3 files (2 damaged, 1 not PNG or JPEG): cat/broken.png, cat/gif.png, cat/notes.txt"
    )


def test_a_huge_picture_is_not_decoded(folder: Path) -> None:
    """A PNG that says that it is 60000 pixels wide, in fifty bytes."""
    import zlib

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 0, 0, 0, 0))
    (folder / "cat/huge.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"") + chunk(b"IEND", b""))
    assert "huge.png" in read_images(folder, RGB, LABELS).skipped


def test_odd_folders(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"the folder .*owl has the label 'owl', this task has the classes 0 to 1"):
        read_images(folder, RGB, ("cat", "dog"))
    (folder / "empty").mkdir()
    with pytest.raises(UsageError, match="holds no images in folders by class: it is empty"):
        read_images(folder / "empty", RGB, LABELS)
    monkeypatch.setattr(images, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"need Pillow: pip install 'covey\[images\]', or give one \.npz"):
        read_images(folder, RGB, LABELS)


def test_limits_of_a_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_BYTES", 2 * 3 * 4 * 6)
    found = read_images(folder, RGB, LABELS)
    assert found.examples.count == 2
    assert "beyond" in found.skipped


def test_examples_are_held_as_bytes() -> None:
    held = ImageExamples(pixels(5, 4, 6, 3), np.zeros(5, np.int64), RGB)
    assert held.pixels.nbytes == 5 * 72

"""The manifest: bytes in, values out, and everything that it refuses."""

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from covey_shared.errors import BundleError
from covey_shared.manifest import MAX_MANIFEST_BYTES, File, Manifest, Parity, Tokenizer
from tests.helpers_shared import LAYOUT

DIGEST = "0123456789abcdef" * 4
MANIFEST = Manifest(
    covey="0.1.0", model="hub/tiny", revision="main", licence="Apache-2.0", architecture="LlamaForCausalLM",
    parameters=1234, task="causal-lm", labels=("no", "yes"), batch_size=4, seq_len=64, rank=4, alpha=8.0,
    target_modules=("q_proj",), precision="float32", seed=3, layout=LAYOUT, start="start.bin",
    tokenizer=Tokenizer(kind="bytes", offset=3, vocab_size=259, pad_id=0, eos_id=1),
    graphs={"onnx": {"train": "onnx/train.onnx"}, "torch": {"folder": "torch"}},
    parity={"onnx": Parity(loss_error=1e-7, gradient_error=8e-7, tolerance=1e-5, peak_bytes=84, step_seconds=0.1)},
    minimum_client="0.1.0",
    files={
        "onnx/train.onnx": File(sha256=DIGEST, bytes=10, targets=("onnx",)),
        "torch/config.json": File(sha256=DIGEST, bytes=10, targets=("torch",)),
        "start.bin": File(sha256=DIGEST, bytes=12),
    },
)  # fmt: skip


IMAGE = {"channels": 3, "height": 8, "width": 8, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}


def raw() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(MANIFEST.to_bytes())
    return loaded


def read(changed: Any) -> Manifest:
    return Manifest.from_bytes(json.dumps(changed).encode())


def test_round_trip() -> None:
    again = Manifest.from_bytes(MANIFEST.to_bytes())
    assert again == MANIFEST
    assert again.to_bytes() == MANIFEST.to_bytes()


def test_inputs_in_the_order_of_the_graphs() -> None:
    assert MANIFEST.inputs("train") == ("adapter", "input_ids", "labels")
    frozen = dataclasses.replace(MANIFEST, frozen=LAYOUT)
    assert frozen.inputs("eval") == ("adapter", "frozen", "input_ids", "labels")
    assert Manifest.from_bytes(frozen.to_bytes()) == frozen
    image = read({**raw(), "task": "image-classification", "tokenizer": None, "image": IMAGE, "seq_len": 0})
    assert image.image is not None
    assert image.image.shape == (3, 8, 8)
    assert image.inputs("forward") == ("adapter", "pixel_values")
    assert Manifest.from_bytes(image.to_bytes()) == image
    with pytest.raises(BundleError, match="is for image-classification, so it has no tokenizer"):
        _ = image.text


def test_ranks() -> None:
    assert MANIFEST.ranks == (4,)
    assert read({**raw(), "ranks": [1, 2, 4]}).ranks == (1, 2, 4)
    assert read({**raw(), "rank": 0, "ranks": []}).ranks == ()


def test_files_for_a_target() -> None:
    assert set(MANIFEST.files_for("onnx")) == {"onnx/train.onnx", "start.bin"}
    assert set(MANIFEST.files_for("torch")) == {"torch/config.json", "start.bin"}
    with pytest.raises(BundleError, match="exported for onnx, torch, not for executorch; export it with --targets"):
        MANIFEST.files_for("executorch")


def test_what_is_used_must_be_named() -> None:
    assert MANIFEST.unnamed() == []
    for path in MANIFEST.files:
        files = {name: file for name, file in MANIFEST.files.items() if name != path}
        assert len(dataclasses.replace(MANIFEST, files=files).unnamed()) == 1


UNSAFE = [
    "/etc/passwd", "../x", "a/../../x", "a//b", "a/./b", ".hidden", "a/.b", "a\\b", "c:x", "a b", "", "a/", "a\n",
    "\u00e9", "a..b",
]  # fmt: skip


@pytest.mark.parametrize("path", UNSAFE)
def test_paths_that_could_leave_the_folder(path: str) -> None:
    file = {"sha256": DIGEST, "bytes": 1, "targets": []}
    with pytest.raises(BundleError, match="not a safe relative path"):
        read({**raw(), "files": {path: file}})
    if path:
        tokenizer = {**raw()["tokenizer"], "path": path}
        for change in ({"graphs": {"onnx": {"train": path}}}, {"start": path}, {"tokenizer": tokenizer}):
            assert read({**raw(), **change}).unnamed() == [path], "so a bundle with it is refused"


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"format": 2}, "has format 2, this version of covey reads format 1"),
    ({"task": "translation"}, "is for task 'translation'; known are causal-lm, sequence-classification, image-"),
    ({"batch_size": 0}, "batch size 0"),
    ({"batch_size": "4"}, "field 'batch_size' is '4', which is no int"),
    ({"batch_size": True}, "field 'batch_size' is True, which is no int"),
    ({"alpha": float("nan")}, "field 'alpha' is nan, which is no float"),
    ({"labels": "yes"}, "field 'labels' is 'yes'"),
    ({"labels": [1]}, r"field 'labels' is \(1,\)"),
    ({"graphs": {"onnx": "x"}}, "field 'graphs'"),
    ({"graphs": {"tpu": {}}}, "graphs for the unknown runtime 'tpu'"),
    ({"tokenizer": None}, "is for causal-lm, so it must have a tokenizer and no image shape"),
    ({"tokenizer": 5}, "is damaged"),
    ({"image": IMAGE}, "is for causal-lm, so it must have a tokenizer and no image shape"),
    ({"task": "image-classification"}, "is for image-classification, so it must have an image shape and no tokenizer"),
    ({"image": {**IMAGE, "height": 0}}, "is for images of 3 x 0 x 8"),
    ({"image": {**IMAGE, "height": 10**30}}, "is for images of 3 x 1000"),
    ({"image": {**IMAGE, "mean": [0.5]}}, "no mean and positive standard deviation for each channel"),
    ({"image": {**IMAGE, "std": [0.5, 0.0, 0.5]}}, "no mean and positive standard deviation for each channel"),
    ({"image": []}, "is damaged"),
    ({"ranks": [4, 2]}, r"has rank 4 and ranks \(4, 2\)"),
    ({"ranks": [2]}, r"has rank 4 and ranks \(2,\)"),
    ({"ranks": [0, 4]}, "each must be at least 1"),
    ({"ranks": 4}, "field 'ranks' is 4"),
    ({"frozen": []}, "is damaged: a layout needs at least one tensor"),
    ({"tokenizer": {"kind": "words", "vocab_size": 1, "pad_id": 0}}, "tokenizer kind 'words', known are 'bytes' and"),
    ({"files": {"a": {"sha256": "00", "bytes": 1, "targets": []}}}, "a file with digest '00' and 1 bytes"),
    ({"files": {"a": {"sha256": DIGEST, "bytes": -1, "targets": []}}}, "and -1 bytes"),
    ({"files": {"a": {"sha256": DIGEST, "bytes": 1}}}, "lacks the field 'targets'"),
    ({"files": {"a": 1}}, "is damaged"),
    ({"files": []}, "is damaged"),
    ({"parity": {"onnx": {"loss_error": 0}}}, "is damaged"),
    ({"layout": []}, "is damaged: a layout needs at least one tensor"),
    ({"layout_digest": DIGEST}, "layout does not have the digest that the manifest states"),
    ({"colour": "red"}, "the field 'colour', which covey 0.1.0 does not know"),
]


@pytest.mark.parametrize(("change", "sentence"), WRONG)
def test_wrong_fields(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(BundleError, match=sentence):
        read({**raw(), **change})


@pytest.mark.parametrize("field", sorted(raw()))
def test_every_field_is_needed_or_has_a_default(field: str) -> None:
    without = raw()
    del without[field]
    if field in ("format", "start", "frozen", "image", "ranks", "quantisation", "recompute"):
        assert isinstance(read(without), Manifest)
    else:
        with pytest.raises(BundleError, match=field):
            read(without)


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"layout_digest": 1}', b'{"a": ' * 10_000]
)
def test_not_a_manifest(data: bytes) -> None:
    with pytest.raises(BundleError):
        Manifest.from_bytes(data)


def test_a_manifest_has_a_bound() -> None:
    with pytest.raises(BundleError, match="more than 16,777,216"):
        Manifest.from_bytes(b" " * (MAX_MANIFEST_BYTES + 1))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=10,
)


@given(st.data(), JSON)
def test_any_value_in_any_field_is_refused_or_sound(data: st.DataObject, value: Any) -> None:
    changed = raw()
    where = data.draw(st.sampled_from(sorted(changed)))
    inner = changed[where]
    if isinstance(inner, dict) and data.draw(st.booleans()):
        inner[data.draw(st.sampled_from(sorted(inner)))] = value
    elif isinstance(inner, list) and inner and isinstance(inner[0], dict) and data.draw(st.booleans()):
        inner[0][data.draw(st.sampled_from(sorted(inner[0])))] = value
    else:
        changed[where] = value
    try:
        manifest = read(changed)
    except BundleError:
        return
    assert Manifest.from_bytes(manifest.to_bytes()) == manifest

"""AFF1: its bytes against the published formula, its error, and what it refuses."""

import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from covey_shared.codec import affine, codec_from_spec, presets
from covey_shared.errors import CodecError, PayloadError
from covey_shared.layout import Layout, Tensor, Vector


def tensor(name: str, *shape: int) -> Tensor:
    return Tensor(name=name, shape=shape, kind="block", init="zeros")


LAYOUT = Layout((tensor("conv", 4, 3, 3, 3), tensor("norm", 5), tensor("fc", 3, 7)))


def resnet(widths: tuple[int, ...], depth: int, rank: int) -> Layout:
    """What FLoCoRA trains: LoRA on every convolution, norms and the last layer whole."""
    out: list[Tensor] = []

    def conv(name: str, m: int, n: int, k: int) -> None:
        out.extend((tensor(f"{name}.A", rank, n, k, k), tensor(f"{name}.B", m, rank, 1, 1)))
        out.extend((tensor(f"{name}.norm.weight", m), tensor(f"{name}.norm.bias", m)))

    conv("stem", widths[0], 3, 3)
    inside = widths[0]
    for i, width in enumerate(widths):
        for block in range(depth):
            conv(f"{i}.{block}.1", width, inside, 3)
            conv(f"{i}.{block}.2", width, width, 3)
            if inside != width:
                conv(f"{i}.{block}.down", width, inside, 1)
            inside = width
    return Layout((*out, tensor("fc.weight", 10, inside), tensor("fc.bias", 10)))


RESNET8, RESNET18 = ((64, 128, 256), 1), ((64, 128, 256, 512), 2)


@pytest.mark.parametrize(
    ("model", "rank", "parameters"),
    [(RESNET8, 8, 68_450), (RESNET8, 16, 131_642), (RESNET8, 32, 258_026), (RESNET8, 64, 510_794),
     (RESNET8, 128, 1_016_330), (RESNET18, 16, 587_578), (RESNET18, 32, 1_160_426), (RESNET18, 64, 2_306_122)],
)  # fmt: skip
def test_what_flocora_trains(model: tuple[tuple[int, ...], int], rank: int, parameters: int) -> None:
    assert resnet(*model, rank).size == parameters


@pytest.mark.parametrize(
    ("model", "rank", "bits", "megabytes"),
    [(RESNET8, 32, 8, 0.279), (RESNET8, 32, 4, 0.152), (RESNET8, 32, 2, 0.088), (RESNET8, 64, 8, 0.534),
     (RESNET18, 32, 8, 1.233), (RESNET18, 32, 4, 0.657), (RESNET18, 32, 2, 0.370), (RESNET18, 64, 8, 2.384)],
)  # fmt: skip
def test_flocora_message_sizes(model: tuple[tuple[int, ...], int], rank: int, bits: int, megabytes: float) -> None:
    """bits * entries + 64 * channels of each tensor with rows, 32 * entries of the others; and 32 bytes around it."""
    layout = resnet(*model, rank)
    formula = sum(
        t.size * bits / 8 + 8 * t.shape[0] if len(t.shape) > 1 else 4 * t.size for t in layout.tensors
    )  # fmt: skip
    codec = codec_from_spec(presets.affine(bits), layout)
    parts, _ = codec.encode(np.zeros(layout.size, np.float32), codec.init(0))
    assert len(parts["packed"]) == affine.HEADER.size + formula == affine.max_bytes(layout, bits)
    assert round(len(parts["packed"]) / 1e6, 3) == megabytes


@pytest.mark.parametrize("bits", affine.BITS)
@given(seed=st.integers(0, 2**32 - 1), power=st.integers(-60, 60))
def test_error_is_half_a_step(bits: int, seed: int, power: int) -> None:
    vector = (np.random.default_rng(seed).standard_normal(LAYOUT.size) * 2.0**power).astype(np.float32)
    got = affine.decode(affine.encode(vector, LAYOUT, bits), LAYOUT, bits)
    for t, where in LAYOUT.slices():
        rows, back = vector[where].reshape(t.shape[0], -1), got[where].reshape(t.shape[0], -1)
        if len(t.shape) == 1:
            assert np.array_equal(rows, back)
        else:
            step = (rows.max(1) - rows.min(1)) / (2**bits - 1)
            assert (np.abs(rows - back).max(1) <= step * (0.5 + 1e-4)).all()


def test_constant_channels_are_exact_and_spoil_nothing() -> None:
    vector = np.random.default_rng(0).standard_normal(LAYOUT.size).astype(np.float32)
    vector[:27] = 0.1  # the first channel
    got = affine.decode(affine.encode(vector, LAYOUT, 4), LAYOUT, 4)
    assert (got[:27] == np.float32(0.1)).all()
    assert np.abs(got[27:108] - vector[27:108]).max() < 0.3


def test_bytes_by_hand() -> None:
    layout = Layout((tensor("w", 1, 5), tensor("b", 1)))
    payload = affine.encode(np.array([1, 2, 3, 4, 1, 0.5], np.float32), layout, 2)
    assert payload[32:] == struct.pack("<ff", 1, 1) + bytes([0b11100100, 0b00]) + struct.pack("<f", 0.5)
    assert payload[:4] == b"AFF1"


def sealed(payload: bytes) -> bytes:
    """With both checksums made right again."""
    body = payload[32:]
    head = payload[:24] + struct.pack("<I", zlib.crc32(body))
    return head + struct.pack("<I", zlib.crc32(head)) + body


def good() -> tuple[Vector, bytes]:
    vector = np.linspace(-1, 1, LAYOUT.size, dtype=np.float32)
    return vector, affine.encode(vector, LAYOUT, 2)


def test_every_cut_and_every_flip_is_refused() -> None:
    _, payload = good()
    for length in range(len(payload)):
        with pytest.raises(PayloadError):
            affine.decode(payload[:length], LAYOUT, 2)
    with pytest.raises(PayloadError, match="left over"):
        affine.decode(payload + b"\0", LAYOUT, 2)
    for at in range(len(payload)):
        damaged = payload[:at] + bytes([payload[at] ^ 4]) + payload[at + 1 :]
        with pytest.raises(PayloadError):
            affine.decode(damaged, LAYOUT, 2)


@pytest.mark.parametrize("bad", [b"\0\0\xc0\x7f", b"\0\0\x80\x7f", b"\0\0\0\x80", b"\xff\xff\x7f\x7f"])
def test_bad_scales_are_refused(bad: bytes) -> None:
    _, payload = good()
    with pytest.raises(PayloadError, match="conv"):
        affine.decode(sealed(payload[:32] + bad + payload[36:]), LAYOUT, 2)


def test_padding_bits_are_refused() -> None:
    layout = Layout((tensor("w", 1, 5),))
    payload = affine.encode(np.arange(5, dtype=np.float32), layout, 2)
    with pytest.raises(PayloadError, match="padding"):
        affine.decode(sealed(payload[:-1] + bytes([payload[-1] | 0x80])), layout, 2)


@given(data=st.binary(max_size=200))
def test_noise_is_refused(data: bytes) -> None:
    with pytest.raises(PayloadError):
        affine.decode(data, LAYOUT, 4)
    with pytest.raises(PayloadError):
        affine.decode(sealed(good()[1][:24].ljust(24) + b"\0" * 8 + data), LAYOUT, 2)


def test_other_bits_are_refused() -> None:
    _, payload = good()
    with pytest.raises(PayloadError, match="of 2 bits"):
        affine.decode(payload, LAYOUT, 8)
    with pytest.raises(CodecError, match="bits must be 2, 4 or 8"):
        codec_from_spec(presets.affine(3), LAYOUT)

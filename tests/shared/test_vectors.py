"""The golden files: what the Kotlin client reads as well."""

import hashlib
from typing import Any

import numpy as np
import pytest

from covey_shared import messages, prng
from covey_shared.codec import affine, codec_from_spec, levels, spk1
from covey_shared.entries import Entries
from covey_shared.errors import MessageError, PayloadError
from covey_shared.layout import Layout, vector_digest
from covey_shared.messages import StageSpec
from tests.helpers_shared import float_bits, floats_of, payload_of, slow_aff1, slow_lvl1, slow_spk1, vectors
from tests.vectors import make
from tests.vectors.packed_cases import VALUES, WHERE

FORMATS = {"spk1": spk1.decode, "lvl1": levels.decode}
GOOD = [(name, case) for name in FORMATS for case in vectors(f"{name}/good.json")["cases"]]
BAD = [(name, case) for name in FORMATS for case in vectors(f"{name}/bad.json")["cases"]]
CODEC = vectors("codec.json")
AFF1 = vectors("aff1.json")


def name_of(value: Any) -> str | None:
    return value["name"] if isinstance(value, dict) else None


def check_entries(entries: Entries, case: dict[str, Any]) -> None:
    """Compares indices and values, or their digests, bit by bit."""
    if "start" in case:
        assert entries.where == slice(case["start"], case["stop"])
    elif "indices" in case:
        assert np.asarray(entries.where).tolist() == case["indices"]
    else:
        indices = np.asarray(entries.where).astype("<u4").tobytes()
        assert hashlib.sha256(indices).hexdigest() == case["indices_sha256"]
    if "values" in case:
        assert float_bits(entries.values) == case["values"]
    else:
        assert vector_digest(entries.values) == case["values_sha256"]


@pytest.mark.parametrize(("form", "case"), GOOD, ids=name_of)
def test_good_payload(form: str, case: dict[str, Any]) -> None:
    payload = payload_of(case["payload"])
    check_entries(FORMATS[form](payload, case["size"], case["layout_id"]), case)
    check_entries(FORMATS[form](memoryview(payload), case["size"], case["layout_id"]), case)


@pytest.mark.parametrize(("form", "case"), GOOD, ids=name_of)
def test_slow_decoder_agrees(form: str, case: dict[str, Any]) -> None:
    """A decoder written from the documentation, without a line of the package."""
    payload = payload_of(case["payload"])
    if form == "spk1":
        indices, values = slow_spk1(payload)
        where: Any = slice(indices[0], indices[-1] + 1) if "start" in case and indices else np.array(indices, np.uint32)
    else:
        first, values = slow_lvl1(payload)
        where = slice(first, first + len(values))
    if values:
        check_entries(Entries(case["size"], where, np.array(values, np.float32)), case)


@pytest.mark.parametrize(("form", "case"), GOOD, ids=name_of)
def test_every_cut_is_refused(form: str, case: dict[str, Any]) -> None:
    payload = payload_of(case["payload"])
    for length in range(len(payload)):
        with pytest.raises(PayloadError):
            FORMATS[form](payload[:length], case["size"], case["layout_id"])
    with pytest.raises(PayloadError, match="left over"):
        FORMATS[form](payload + b"\0", case["size"], case["layout_id"])


@pytest.mark.parametrize(("form", "case"), BAD, ids=name_of)
def test_bad_payload(form: str, case: dict[str, Any]) -> None:
    with pytest.raises(PayloadError) as caught:
        FORMATS[form](payload_of(case["payload"]), case["size"], case["layout_id"], case["max_entries"])
    assert str(caught.value) == case["error"]
    assert caught.value.status == case["status"]


@pytest.mark.parametrize("case", CODEC["cases"], ids=lambda c: "-".join(s["name"] for s in c["spec"]))
def test_chain(case: dict[str, Any]) -> None:
    codec = codec_from_spec([StageSpec(**s) for s in case["spec"]], Layout.from_json(CODEC["layout"]))
    check_entries(codec.decode({name: bytes.fromhex(part) for name, part in case["parts"].items()}), case)


@pytest.mark.parametrize("case", CODEC["bad"], ids=name_of)
def test_bad_parts(case: dict[str, Any]) -> None:
    codec = codec_from_spec([StageSpec(**s) for s in case["spec"]], Layout.from_json(CODEC["layout"]))
    with pytest.raises(PayloadError) as caught:
        codec.decode({name: bytes.fromhex(part) for name, part in case["parts"].items()})
    assert str(caught.value) == case["error"]
    assert caught.value.status == case["status"]


@pytest.mark.parametrize("case", AFF1["cases"], ids=name_of)
def test_affine(case: dict[str, Any]) -> None:
    layout = Layout.from_json(AFF1["layout"])
    payload = bytes.fromhex(case["payload"])
    assert float_bits(affine.decode(payload, layout, case["bits"])) == case["values"]
    assert float_bits(np.array(slow_aff1(payload, layout), np.float32)) == case["values"]


@pytest.mark.parametrize("case", AFF1["bad"], ids=name_of)
def test_bad_affine(case: dict[str, Any]) -> None:
    with pytest.raises(PayloadError) as caught:
        affine.decode(bytes.fromhex(case["payload"]), Layout.from_json(AFF1["layout"]), case["bits"])
    assert str(caught.value) == case["error"]


def test_encoder_makes_the_golden_payloads() -> None:
    cases = {case["name"]: payload_of(case["payload"]) for form, case in GOOD if form == "spk1"}
    entries = Entries(1000, WHERE, VALUES)
    for name, mode in (("sign", "sign"), ("levels as the encoder chose them", "lev")):
        made = spk1.decode(spk1.encode(entries, 0x11223344, mode), 1000, 0x11223344)
        golden = spk1.decode(cases[name], 1000, 0x11223344)
        assert float_bits(made.values) == float_bits(golden.values)


def test_prng() -> None:
    golden = vectors("prng.json")
    for case in golden["draws"]:
        assert make.hexes(prng.draws(int(case["seed"]), case["first"], len(case["outputs"]))) == case["outputs"]
    for case in golden["uniform"]:
        assert float_bits(prng.uniform(int(case["seed"]), 0, len(case["values"]))) == case["values"]
    for case in golden["derive"]:
        assert f"{prng.derive(*case['parts']):016x}" == case["seed"]
    for case in golden["permutation"]:
        assert prng.permutation(int(case["seed"]), case["count"]).tolist() == case["order"]


def test_start() -> None:
    golden = vectors("start.json")
    layout = Layout.from_json(golden["layout"])
    assert (layout.canonical.decode(), layout.digest, layout.short_id) == (
        golden["canonical"],
        golden["digest"],
        golden["short_id"],
    )
    for case in golden["starts"]:
        start = layout.start(int(case["seed"]), floats_of(golden["stored"]))
        assert float_bits(start) == case["start"]
        assert vector_digest(start) == case["vector_digest"]


@pytest.mark.parametrize("name", make.MESSAGES)
def test_message(name: str) -> None:
    golden = vectors(f"messages/{name}.json")
    message = make.MESSAGES[name]
    assert message.to_bytes().hex() == golden["bytes"]
    assert type(message).from_bytes(bytes.fromhex(golden["bytes"])) == message
    assert make.to_json(message) == golden["fields"]
    assert type(message).__name__ == golden["type"]


@pytest.mark.parametrize("case", vectors("messages/bad.json")["cases"], ids=name_of)
def test_bad_message(case: dict[str, Any]) -> None:
    with pytest.raises(MessageError) as caught:
        getattr(messages, case["type"]).from_bytes(bytes.fromhex(case["bytes"]))
    assert str(caught.value) == case["error"]


def test_files_are_what_the_script_makes() -> None:
    """Payloads may differ where another DEFLATE does, so of those only the list of cases is compared."""
    for path, content in make.build().items():
        if "cases" in content and path != "messages/bad.json":
            made, stored = content["cases"], vectors(path)["cases"]
            assert [c.get("name", c.get("spec")) for c in made] == [c.get("name", c.get("spec")) for c in stored]
        else:
            assert vectors(path) == content, f"{path}: run python -m tests.vectors.make and look at the difference"

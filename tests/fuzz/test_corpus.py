"""Every kept input and every seed, and what Hypothesis makes of the seeds, without atheris."""

import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import TARGETS

CORPUS = Path(__file__).parent / "corpus"
KEPT = [(name, path) for name in TARGETS for path in sorted((CORPUS / name).glob("*"))]


@pytest.mark.parametrize(("name", "path"), KEPT, ids=lambda x: x.name if isinstance(x, Path) else x)
def test_what_was_found_once(name: str, path: Path) -> None:
    begun = time.monotonic()
    TARGETS[name].run(path.read_bytes())
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_reach_beyond_the_refusals(name: str) -> None:
    if name != "signatures":  # whose seeds sign something else
        assert any(TARGETS[name].run(seed) for seed in TARGETS[name].seeds()), "no seed is good"


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_changed_seeds(name: str, data: st.DataObject) -> None:
    seed = bytearray(data.draw(st.sampled_from(list(TARGETS[name].seeds()))))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(seed)))
        piece = data.draw(
            st.binary(max_size=4) | st.sampled_from([b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff"])
        )
        cut = data.draw(st.integers(0, 4))
        seed[at : at + cut] = piece
    TARGETS[name].run(bytes(seed))


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=60, deadline=None)
@given(data=st.binary(max_size=300))
def test_any_bytes(name: str, data: bytes) -> None:
    TARGETS[name].run(data)

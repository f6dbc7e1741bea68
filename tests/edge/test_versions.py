from dataclasses import replace

import numpy as np
import pytest

from covey_edge.versions import NOTHING, Held, advance
from covey_shared.codec import codec_from_spec, presets
from covey_shared.errors import LayoutError, MessageError
from covey_shared.layout import Vector, vector_digest
from covey_shared.messages import Adapter, Spec, StageSpec, Step
from tests.helpers_edge import LAYOUT

START = LAYOUT.start(7)


def step(version: int, change: Vector, spec: Spec) -> Step:
    codec = codec_from_spec(spec, LAYOUT)
    return Step(version=version, codec=spec, parts=codec.encode(change, codec.init(0))[0])


def decoded(s: Step) -> Vector:
    return codec_from_spec(s.codec, LAYOUT).decode(s.parts).dense()


CHANGE: Vector = np.sin(np.arange(LAYOUT.size)).astype(np.float32)
STEPS = (
    step(1, CHANGE, presets.sign()),
    step(2, -CHANGE, presets.flasc(0.25)),
    step(3, CHANGE, presets.levels(0.1)),
)


def message(base: int, steps: tuple[Step, ...], result: Vector) -> Adapter:
    version = steps[-1].version if steps else 0
    return Adapter(version=version, base=base, layout=LAYOUT.digest, digest=vector_digest(result), steps=steps)


def start() -> Vector:
    return LAYOUT.start(7)


def test_steps_one_at_a_time_equal_all_at_once() -> None:
    views = [START]
    for s in STEPS:
        views.append(views[-1] + decoded(s))
    held = advance(Held(NOTHING, np.empty(0, np.float32)), message(0, (), START), LAYOUT, start)
    for i, s in enumerate(STEPS):
        held = advance(held, message(i, (s,), views[i + 1]), LAYOUT, start)
        assert held.version == i + 1
    at_once = advance(Held(NOTHING, np.empty(0, np.float32)), message(0, STEPS, views[3]), LAYOUT, start)
    np.testing.assert_array_equal(held.adapter, at_once.adapter)
    np.testing.assert_array_equal(held.adapter, views[3])


def test_from_zero_and_without_touching_what_is_held() -> None:
    whole = step(4, CHANGE, presets.dense())
    held = Held(2, START)
    after = advance(held, message(NOTHING, (whole,), CHANGE), LAYOUT, start)
    np.testing.assert_array_equal(after.adapter, CHANGE)
    np.testing.assert_array_equal(held.adapter, LAYOUT.start(7))


def test_refusals() -> None:
    held, good = Held(0, START), message(0, STEPS[:1], START + decoded(STEPS[0]))
    with pytest.raises(MessageError, match="does not have the digest that the server states"):
        advance(held, replace(good, digest="0" * 64), LAYOUT, start)
    with pytest.raises(LayoutError, match="the server sends an adapter for layout 000000000000"):
        advance(held, replace(good, layout="0" * 64), LAYOUT, start)
    with pytest.raises(MessageError, match="a change to version 3, this device holds version 0"):
        advance(held, replace(good, base=3, version=4), LAYOUT, start)
    stranger = replace(STEPS[0], codec=(StageSpec(name="brotli", args={}),))
    with pytest.raises(MessageError, match="version 1 of the adapter cannot be decoded here"):
        advance(held, replace(good, steps=(stranger,)), LAYOUT, start)
    hostile = replace(STEPS[0], parts={k: v[:-1] for k, v in STEPS[0].parts.items()})
    with pytest.raises(Exception) as error:
        advance(held, replace(good, steps=(hostile,)), LAYOUT, start)
    assert type(error.value).__name__ in ("PayloadError", "MessageError")

"""What travels of an adapter, by policy."""

import numpy as np
import pytest

from covey_shared.errors import LayoutError
from covey_shared.layout import Layout, Tensor
from covey_shared.messages import Sharing
from covey_shared.sharing import SECOND, Division, fresh_seed


def lora(module: str, rank: int, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    a = Tensor(name=f"{module}.lora_A", shape=(rank, 6), kind="lora_A", init="kaiming_uniform", module=module,
               rank=rank, scale=scale)  # fmt: skip
    b = Tensor(name=f"{module}.lora_B", shape=(5, rank), kind="lora_B", init="zeros", module=module, rank=rank,
               scale=scale)  # fmt: skip
    return a, b


HEAD = Tensor(name="head", shape=(3,), kind="head", init="zeros")
ADAPTER = Layout((*lora("h.0.q", 4), *lora("h.1.q", 4), HEAD))
SECOND_LAYOUT = Layout((*lora("h.0.q", 8), *lora("h.1.q", 8)))
START = ADAPTER.start(3)


def names(layout: Layout | None) -> list[str]:
    return [t.name for t in layout.tensors] if layout else []


def division(**fields: object) -> Division:
    return Division(ADAPTER, SECOND_LAYOUT, Sharing(**fields))  # type: ignore[arg-type]


def test_by_default_everything_travels() -> None:
    plain = division()
    assert plain.space == plain.published == plain.trained(1) == plain.uploaded(7) == plain.held() == ADAPTER
    assert plain.personal() is None
    assert plain.uploads().keys() == {ADAPTER.digest}
    assert plain.start(START).tobytes() == START.tobytes()


def test_personal_tensors_are_trained_and_stay() -> None:
    fedsa = division(personal=("kind:lora_B",))
    assert names(fedsa.published) == names(fedsa.uploaded(1)) == ["h.0.q.lora_A", "h.1.q.lora_A", "head"]
    assert names(fedsa.personal()) == ["h.0.q.lora_B", "h.1.q.lora_B"]
    assert fedsa.trained(1) == ADAPTER
    assert names(division(personal=("h.1.*", "head")).published) == ["h.0.q.lora_A", "h.0.q.lora_B"]


def test_fixed_tensors_are_not_trained() -> None:
    ffa = division(fixed=("kind:lora_A",))
    assert names(ffa.trained(1)) == names(ffa.published) == ["h.0.q.lora_B", "h.1.q.lora_B", "head"]


def test_phases_take_turns() -> None:
    rolora = division(phases=(("kind:lora_B", "head"), ("kind:lora_A",)))
    assert names(rolora.uploaded(1)) == ["h.0.q.lora_B", "h.1.q.lora_B", "head"]
    assert names(rolora.uploaded(2)) == ["h.0.q.lora_A", "h.1.q.lora_A"]
    assert rolora.uploaded(3) == rolora.uploaded(1)
    assert rolora.published == ADAPTER
    assert len(rolora.uploads()) == 2


def test_ranks_and_the_second_adapter() -> None:
    flora = division(fresh=("kind:lora_A", "kind:lora_B"), ranks=(2, 4), second=True)
    assert flora.published.tensors[0] == HEAD
    assert names(flora.published)[1:] == [SECOND + name for name in names(SECOND_LAYOUT)]
    assert flora.uploaded(1, 2) == ADAPTER.at_rank(2)
    assert flora.mixed
    start = flora.start(START)
    assert not start.any()
    fresh = ADAPTER.start(fresh_seed(3, 5))
    space = flora.at(START, start + 1, fresh=fresh)
    assert space[: ADAPTER.size - 3].tobytes() == fresh[:-3].tobytes()
    assert (space[ADAPTER.size - 3 :] == 1).all()
    assert fresh_seed(3, 5) != fresh_seed(3, 6)


def test_a_version_lies_over_the_start() -> None:
    fedsa = division(personal=("kind:lora_B",))
    published = np.arange(fedsa.published.size, dtype=np.float32)
    space = fedsa.at(START, published)
    assert space[fedsa.space.positions(fedsa.published)].tobytes() == published.tobytes()
    personal = fedsa.personal()
    assert personal is not None
    assert space[fedsa.space.positions(personal)].tobytes() == START[ADAPTER.positions(personal)].tobytes()


def test_cohorts_have_copies() -> None:
    three = division(cohort=("head",), cohorts=3)
    assert names(three.published)[-3:] == ["cohort0.head", "cohort1.head", "cohort2.head"]
    assert three.uploaded(1) == ADAPTER
    start = three.start(START + 1)
    assert (start[-9:] == 1).all()
    start[-3:] = 7
    assert (three.at(START, start, cohort=2)[ADAPTER.size - 3 : ADAPTER.size] == 7).all()
    assert (three.at(START, start, cohort=1)[ADAPTER.size - 3 : ADAPTER.size] == 1).all()
    entries = np.zeros(three.space.size)
    entries[three.placed(ADAPTER, 2)] = 1
    assert entries[-3:].all()
    assert not entries[ADAPTER.size - 3 : -3].any()


@pytest.mark.parametrize("second", [False, True])
def test_a_device_holds_what_all_have_and_its_cohort_s_copies(second: bool) -> None:
    three = division(cohort=("head",), cohorts=3, second=second)
    assert three.common is not None
    assert names(three.downloaded(1)) == [*names(three.common), "cohort1.head"]
    assert not any("cohort" in name for name in names(three.common))
    published = np.arange(three.published.size, dtype=np.float32)
    held = published[three.published.positions(three.downloaded(1))]
    mine, theirs = (three.at(START, vector, cohort=1) for vector in (three.spread(START, held, 1), published))
    size = ADAPTER.size
    assert mine[:size].tobytes() == theirs[:size].tobytes()
    one, other = three.second_at(mine), three.second_at(theirs)
    assert (one is None and other is None) if not second else np.array_equal(one, other)  # type: ignore[arg-type]
    plain = division()
    assert plain.common == plain.downloaded(0) == plain.published
    assert plain.spread(START, START, 0) is START


def test_cohorts_may_have_everything_but_not_nothing() -> None:
    apart = division(cohort=("*",), cohorts=2)
    assert apart.common is None
    assert apart.downloads(1) == ((apart.copy(1), 1),)
    with pytest.raises(LayoutError, match="cohorts would share nothing"):
        division(cohort=("kind:norm",), cohorts=2)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"personal": ("*",)}, "nothing would be learned together"),
        ({"personal": ("kind:norm",)}, "nothing of the adapter is personal"),
        ({"personal": ("h.7.*",)}, "'h.7.*' matches no tensor"),
        ({"personal": ("head",), "cohort": ("head",), "cohorts": 2}, "'head' is personal and cohort"),
        ({"personal": ("h.0.*",), "fixed": ("kind:lora_A",)}, "'h.0.q.lora_A' is personal and fixed"),
    ],
)
def test_refused(fields: dict[str, object], sentence: str) -> None:
    with pytest.raises(LayoutError, match=sentence.replace("*", r"\*")):
        division(**fields)


def test_needs_a_second_adapter() -> None:
    with pytest.raises(LayoutError, match="--frozen-rank"):
        Division(ADAPTER, None, Sharing(second=True))

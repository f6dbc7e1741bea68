import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from covey_server.downloads import Cache, Plan, plan
from covey_server.refusals import Refused
from covey_server.store import VersionRow

BIG = 2**60


def rows(*sizes: int, absolute: bool = False) -> list[VersionRow]:
    """Version 0 and one for each step size."""
    first = VersionRow(0, None, -1 if absolute else 0, "s" if absolute else None, 7, "x", "d", 0, 0.0)
    return [
        first, *(VersionRow(i, i - 1, -1 if absolute else i - 1, "s", size, "x", "d", 1, 0.0)
                 for i, size in enumerate(sizes, 1)),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("held", "version", "base", "steps"),
    [(-1, 0, 0, ()), (0, 0, 0, ()), (-1, 3, 0, (1, 2, 3)), (0, 2, 0, (1, 2)), (2, 3, 2, (3,)), (3, 3, 3, ()),
     (3, 1, 0, (1,)), (99, 2, 0, (1, 2))],
)  # fmt: skip
def test_differences(held: int, version: int, base: int, steps: tuple[int, ...]) -> None:
    assert plan(rows(10, 10, 10), held, version, BIG) == Plan(version, base, steps, False)


@pytest.mark.parametrize(
    ("held", "version", "base", "steps"),
    [(-1, 0, -1, (0,)), (0, 0, -1, (0,)), (-1, 2, -1, (2,)), (1, 2, -1, (2,)), (2, 2, 2, ())],
)
def test_absolute_weights_are_one_step_from_zero(held: int, version: int, base: int, steps: tuple[int, ...]) -> None:
    assert plan(rows(10, 10, absolute=True), held, version, BIG) == Plan(version, base, steps, False)


def test_the_whole_when_it_is_fewer_bytes_and_only_for_the_head() -> None:
    assert plan(rows(10, 10, 10), -1, 3, 29) == Plan(3, -1, (), True)
    assert plan(rows(10, 10, 10), -1, 3, 30) == Plan(3, 0, (1, 2, 3), False)
    assert plan(rows(10, 10, 10), 2, 3, 29) == Plan(3, 2, (3,), False)
    assert plan(rows(10, 10, 10), -1, 2, 5) == Plan(2, 0, (1, 2), False)
    assert plan(rows(10, 10, 10), 3, 3, 0) == Plan(3, 3, (), False)


def test_more_steps_than_a_message_holds() -> None:
    many = rows(*[1] * 5000)
    assert plan(many, -1, 5000, BIG).whole
    with pytest.raises(Refused, match="ask for the newest version"):
        plan(many, -1, 4999, BIG)
    assert plan(many, 4990, 4999, BIG).steps == tuple(range(4991, 5000))


@given(st.lists(st.integers(1, 100), min_size=1, max_size=8), st.integers(-1, 10), st.data())
def test_a_plan_always_leads_to_the_version(sizes: list[int], held: int, data: st.DataObject) -> None:
    table = rows(*sizes)
    version = data.draw(st.integers(0, len(sizes)))
    chosen = plan(table, held, version, data.draw(st.integers(0, 500)))
    if chosen.whole:
        assert version == len(sizes)
    else:
        assert (chosen.base, *chosen.steps) == (chosen.base, *range(chosen.base + 1, version + 1))
        assert chosen.base in (0, held)


def test_the_cache_makes_each_answer_once_and_forgets_the_oldest() -> None:
    made = []

    async def make(key: Plan) -> bytes:
        made.append(key)
        await asyncio.sleep(0.01)
        return b"x" * 40

    async def scenario() -> None:
        cache = Cache(limit=100)
        keys = [Plan(i, 0, (), False) for i in range(3)]
        answers = await asyncio.gather(*(cache.get(keys[0], lambda: make(keys[0])) for _ in range(20)))
        assert answers == [b"x" * 40] * 20
        for key in (keys[1], keys[0], keys[2], keys[0], keys[2]):
            await cache.get(key, lambda key=key: make(key))  # type: ignore[misc]
        assert made == keys
        await cache.get(keys[1], lambda: make(keys[1]))
        assert made == [*keys, keys[1]], "it was the least recently used of three that do not fit"

    asyncio.run(scenario())


def test_a_device_that_hangs_up_does_not_spoil_the_answer_of_others_and_a_failure_is_not_kept() -> None:
    async def slow() -> bytes:
        await asyncio.sleep(0.05)
        return b"ok"

    async def broken() -> bytes:
        raise OSError("disk")

    async def scenario() -> None:
        cache, key = Cache(limit=100), Plan(1, 0, (), False)
        first, second = (asyncio.create_task(cache.get(key, slow)) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        assert await second == b"ok"
        other = Plan(2, 0, (), False)
        with pytest.raises(OSError, match="disk"):
            await cache.get(other, broken)
        assert await cache.get(other, slow) == b"ok"

    asyncio.run(scenario())

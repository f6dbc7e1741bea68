"""Tiers of devices that upload at densities of their own (FLASC's 1, 1/4, 1/16), with real clients and server."""

import asyncio
from pathlib import Path

import pytest

from covey_edge import calls
from covey_edge.identity import open_key
from covey_edge.transport import Refused, Traffic, connect
from covey_server import task_file, task_sections
from covey_shared.errors import TaskFileError
from covey_shared.layout import vector_digest
from covey_shared.messages import Task
from tests.helpers_edge import LAYOUT
from tests.helpers_edge_serving import serving
from tests.helpers_fleet import Ended, bigram_bundle, take_part
from tests.helpers_server import status_of

TIERS = """[upload]
codec = "dense"
[[tier]]
name = "wifi"
codec = [{name = "topk", density = 0.25}, {name = "pack"}]
[[tier]]
name = "metered"
codec = [{name = "topk", density = 0.0625}, {name = "pack"}]
"""
OF = {"ann": "", "bob": "wifi", "cid": "metered"}


def tiers(more: str, strategy: str = "fedavg") -> tuple[task_sections.Tier, ...]:
    return task_file.parse(f'[task]\nbundle = "b"\n[strategy]\nname = "{strategy}"\n{more}').tiers


def test_three_tiers_learn_together(tmp_path: Path) -> None:
    """Each sends by its own codec, all hold the same version, and a server that was stopped decodes all of them."""
    bundle = bigram_bundle(tmp_path / "bundle")

    async def everyone(url: str, once: bool) -> list[Ended]:
        made = (take_part(url, name, tmp_path, bundle, tier=tier, once=once) for name, tier in OF.items())
        return await asyncio.gather(*made)

    with serving(bundle, tmp_path / "server", rounds=4, target=3, more=TIERS) as server:
        asyncio.run(everyone(server.url, once=True))
    with serving(bundle, tmp_path / "server", rounds=4, target=3, more=TIERS) as server:
        ended = dict(zip(OF, asyncio.run(everyone(server.url, once=False)), strict=True))
        history = status_of(server.url)["history"]
    assert history[-1]["loss"] < history[0]["loss"] - 0.1
    assert {vector_digest(e.record.version().adapter) for e in ended.values()} == {history[-1]["digest"]}
    sent = {name: max(e["bytes"] for e in log if e["event"] == "uploaded") for name, (_, log) in ended.items()}
    assert sent["ann"] > 4 * LAYOUT.size > 5 * sent["bob"]
    assert sent["bob"] > sent["cid"] + 100


def test_a_tier_is_asked_for_with_the_task(tmp_path: Path) -> None:
    bundle = bigram_bundle(tmp_path / "bundle")

    async def ask(url: str, *names: str) -> list[Task]:
        (tmp_path / "key").mkdir(exist_ok=True)
        async with connect(url, open_key(tmp_path / "key"), Traffic()) as transport:
            await calls.enroll(transport, "ann", "")
            return [await calls.get_task(transport, name) for name in names]

    with serving(bundle, tmp_path / "server", more=TIERS) as server:
        plain, wifi = asyncio.run(ask(server.url, "", "wifi"))
        with pytest.raises(Refused, match="has no tier 'cable', it has wifi, metered"):
            asyncio.run(ask(server.url, "cable"))
    assert [stage.name for stage in plain.upload_codec] == ["pack"]
    assert wifi.upload_codec[0].args["density"] == 0.25
    assert plain.max_upload_bytes == wifi.max_upload_bytes > 4 * LAYOUT.size


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('[[tier]]\nname = "a"\n', "needs a name and a codec"),
        ('[[tier]]\ncodec = "sign"\n', "needs a name and a codec"),
        ('[[tier]]\nname = "a b"\ncodec = "sign"\n', "name"),
        ('[[tier]]\nname = "a"\ncodec = "sing"\n', "tier a"),
        ('[[tier]]\nname = "a"\ncodec = "sign"\nerror = 1\n', "tier a"),
        ('[tier]\nname = "a"\n', r"written \[\[tier\]\]"),
        ('[[tier]]\nname = "a"\ncodec = "sign"\n' * 2, "two tiers are called 'a'"),
        ("".join(f'[[tier]]\nname = "t{i}"\ncodec = "sign"\n' for i in range(65)), "at most 64"),
    ],
)
def test_a_wrong_tier_is_refused(text: str, sentence: str) -> None:
    with pytest.raises(TaskFileError, match=sentence):
        tiers(text)


def test_a_strategy_that_compares_updates_takes_no_sparse_tier() -> None:
    assert [t.name for t in tiers('[[tier]]\nname = "a"\ncodec = "levels"\n', "krum")] == ["a"]
    with pytest.raises(TaskFileError, match=r"krum.*\[tier a\] codec 'topk'"):
        tiers('[[tier]]\nname = "a"\ncodec = [{name = "topk", density = 0.1}, {name = "pack"}]\n', "krum")

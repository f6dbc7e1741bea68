"""Whether a task file still is the one that a run was begun with: what may change while a run goes on, and what not."""

import json
from typing import Any

from covey_server.task_file import parse
from covey_server.task_sections import PRESETS, TaskFile

# Keys whose change does not contradict what a run has on disk: they say how the next rounds are run.
HARMLESS = ("task.bundle", "task.publish_every", "task.keep_updates")
CHOICES = ("strategy", "server", "upload", "download")  # sections whose keys depend on a name in them
HARMLESS_SECTIONS = ("round", "defence")  # but for the round's mode: assignments are numbered otherwise


def changed_key(stored: str, now: TaskFile, version: int) -> str | None:
    """The first key in which a run's stored task differs from the file in a way that matters, or None.

    `stored` is `to_json` of the run's task, `version` its head. The bundle is compared by digest elsewhere, so it may
    move; `rounds` may grow, or shrink to what is already done. A key that an older covey did not know had its default.
    """
    default = _flat(json.loads(parse('[task]\nbundle = ""').to_json()))
    sections = {key: value for key, value in default.items() if key.split(".")[0] not in CHOICES}
    old, new = {**sections, **_flat(_completed(json.loads(stored)))}, _flat(json.loads(now.to_json()))
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) == new.get(key) or key in HARMLESS or _harmless(key):
            continue
        if key == "task.rounds" and int(new[key]) >= version:
            continue
        return key
    return None


def _completed(stored: dict[str, Any]) -> dict[str, Any]:
    """A stored task whose codecs have the arguments that an older covey did not know."""
    for holder, key in (
        (stored, "upload"),
        (stored, "download"),
        *((tier, "codec") for tier in stored.get("tiers", ())),
    ):
        codec = holder.get(key)
        if isinstance(codec, dict) and codec.get("name") in PRESETS:
            holder[key] = {**codec, "args": {**PRESETS[codec["name"]], **codec.get("args", {})}}
    return stored


def _harmless(key: str) -> bool:
    return key.split(".")[0] in HARMLESS_SECTIONS and key != "round.mode"


def _flat(data: Any, prefix: str = "") -> dict[str, Any]:
    """Nested tables as dotted keys; a list counts by position."""
    if isinstance(data, list):
        data = {str(i): value for i, value in enumerate(data)}
    if not isinstance(data, dict):
        return {prefix: data}
    out: dict[str, Any] = {}
    for key, value in data.items():
        out |= _flat(value, f"{prefix}.{key}" if prefix else key)
    return out

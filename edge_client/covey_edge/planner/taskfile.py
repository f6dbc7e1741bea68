"""The recommended task file: complete, and with the reason of each line beside it. Pure."""

import json
import textwrap
from typing import NamedTuple

from covey_edge.planner.halving import Found
from covey_edge.planner.space import CODECS, SERVERS, Choice, Scene, sections
from covey_shared.show import size_text

WIDE = 118


class Facts(NamedTuple):
    """What the comments tell. `bundle`: as the file names it; `before`: the loss of version 0; `dealt`: the data."""

    bundle: str
    model: str
    ranks: tuple[int, ...]
    budget: int
    pilots: int
    rounds: int
    before: float
    dealt: str
    task_rounds: int


def render(choice: Choice, found: Found, scene: Scene, facts: Facts) -> str:
    """The file's text."""
    lines = sections(choice, scene)
    why = _reasons(choice, facts)
    task = f'name = "planned"\nbundle = {json.dumps(facts.bundle)}\nrounds = {facts.task_rounds}'
    blocks = [_comment(_head(choice, found, facts))]
    for name, body in lines.items():
        body = f"{task}\n{body}" if name == "task" else body
        blocks.append(f"{_comment(why[name])}[{name}]\n{body}\n")
    return "\n".join(blocks)


def _head(choice: Choice, found: Found, facts: Facts) -> str:
    return (
        f"Chosen by covey plan for {facts.model}: of {facts.pilots} pilots this one was the best within "
        f"{size_text(facts.budget)} a device and round, counted up and down.\n"
        f"A device sends {found.sent:,.0f} bytes a round and receives {found.received:,.0f} (bodies of messages, on "
        f"average; {found.worst:,} together at most).\n"
        f"Held-out loss {facts.before:.4f} -> {found.loss:.4f} nats in {facts.rounds} rounds on the sample: "
        f"{facts.dealt}.\n"
        f"Serve it with: covey serve FILE"
    )


def _reasons(choice: Choice, facts: Facts) -> dict[str, str]:
    ranks = ", ".join(map(str, facts.ranks))
    rank = f"The rank is one of the bundle's {ranks}; the other factors stay zero and never travel. " if ranks else ""
    sent, got = CODECS[choice.up], CODECS[choice.down]
    origin = (
        "The sum of all changes so far is sent each time, so one step brings any device to the newest version."
        if choice.since == "start"
        else "Each version is the difference from the one before: the least for a device of every round."
    )
    return {
        "task": f"{rank}Pilots ran {facts.rounds} rounds; raise rounds and start again, and a finished task goes on.",
        "round": "As many devices a round as in the pilots. With more, rounds cost the server more and learn steadier.",
        "client": "What each device does in a round. error_feedback: what the codec dropped is sent later.",
        "upload": f"Up: {_entries(sent.sends, sent.density)}, values: {sent.values}.",
        "download": f"Down: {_entries(got.sends, got.density)}, values: {got.values}. {origin}",
        "server": SERVERS[choice.server].why,
    }  # fmt: skip


def _entries(sends: str, density: float) -> str:
    share = f"1/{round(1 / density)}"
    return {
        "all": "every entry",
        "top": f"the largest {share} of the entries",
        "important": f"the {share} of the entries that change the model most",
        "segments": f"one of {round(1 / density)} segments after the other",
        "adaptive": f"the largest {share} of the entries, or segments of signs where the change is flat",
    }[sends]


def _comment(text: str) -> str:
    wrapped = (line for part in text.split("\n") for line in textwrap.wrap(part, WIDE - 2))
    return "".join(f"# {line}\n" for line in wrapped)

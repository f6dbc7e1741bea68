"""docs/protocol.md and docs/server.md say everything that the code has, with the same defaults."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from covey_server import bodies, operation, task_changes, task_file, task_sections, upload_handlers
from covey_server.admin import ADMIN_ROUTES
from covey_server.handlers import ROUTES
from covey_server.metrics import Metrics
from covey_server.prepare import spec_of
from covey_server.refusals import CODES
from covey_shared import messages, schema
from covey_shared.codec import codec_from_spec
from covey_shared.schema import Message
from tests import render_faults
from tests.helpers_server import LAYOUT

DOCS = Path(__file__).parent.parent.parent / "docs"
PROTOCOL = (DOCS / "protocol.md").read_text()
SERVER = (DOCS / "server.md").read_text()
MESSAGES = [m for m in vars(messages).values() if isinstance(m, type) and issubclass(m, Message) and m is not Message]


def section(text: str, heading: str) -> str:
    """From a heading to the next of its level."""
    level = heading.split()[0]
    return text.split(f"\n{heading}\n", 1)[1].split(f"\n{level} ", 1)[0]


def code(value: Any) -> str:
    return {True: "true", False: "false"}.get(value, str(value)) if isinstance(value, bool) else str(value)


@pytest.mark.parametrize("route", [*ROUTES, *upload_handlers.ROUTES], ids=lambda r: f"{r.method} {r.path}")
def test_every_route_is_described(route: Any) -> None:
    assert re.search(rf"^#+ .*{route.method} {re.escape(route.path)}", PROTOCOL, re.MULTILINE)


@pytest.mark.parametrize("route", ADMIN_ROUTES, ids=lambda r: f"{r.method} {r.path}")
def test_every_route_of_the_operator_is_described_with_its_role(route: Any) -> None:
    assert f"| `{route.method} {route.path}` | {route.policy.who} |" in SERVER


def test_what_operators_ask_is_described() -> None:
    for route in operation.ROUTES:
        assert f"`{route.method} {route.path}`" in SERVER
    for family in Metrics().registry.collect():
        if family.name.startswith("covey_"):
            assert f"`{family.name}{'_total' if family.type == 'counter' else ''}`" in SERVER


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: m.__name__)
def test_every_message_and_field_is_described(message: Any) -> None:
    assert f"`{message.__name__}`" in PROTOCOL
    for field in dataclasses.fields(message):
        assert f"`{field.name}`" in PROTOCOL, f"{message.__name__}.{field.name}"


def test_every_refusal_is_described_with_its_status() -> None:
    rows = {name: int(status) for status, name in re.findall(r"^\| (\d+) \| `(\w+)` \|", PROTOCOL, re.MULTILINE)}
    assert rows == {name: kind.status for name, kind in CODES.items()}


def test_limits_are_those_of_the_code() -> None:
    for number in (bodies.SMALL, schema.MAX_ITEMS, schema.MAX_ALL, schema.MAX_TEXT, bodies.SLOWEST_BYTES_S):
        assert f"{number:,}" in PROTOCOL
    assert f"After {bodies.IDLE_S:g} seconds" in PROTOCOL
    assert f"after {bodies.SLOW_AFTER_S:g} seconds" in PROTOCOL


@pytest.mark.parametrize(
    ("heading", "cls"),
    [("### [task]", task_sections.TaskSection), ("### [round]", task_sections.RoundSection),
     ("### [client]", task_sections.ClientSection), ("### [defence]", task_sections.DefenceSection)],
)  # fmt: skip
def test_every_key_is_described_with_its_default(heading: str, cls: Any) -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| ?`?([^|`]*?)`? \|", section(SERVER, heading), re.MULTILINE))
    fields = {f.name: "" if f.default is dataclasses.MISSING else code(f.default) for f in dataclasses.fields(cls)}
    assert rows == fields


def test_every_choice_is_described_with_its_arguments() -> None:
    for heading, table in (
        ("### [strategy]", task_sections.STRATEGIES),
        ("### [server]", task_sections.OPTIMIZERS),
        ("### [upload] and [download]", task_sections.PRESETS),
    ):
        text = section(SERVER, heading)
        for name, args in table.items():
            row = next(line for line in text.splitlines() if line.startswith(f"| `{name}`"))
            for arg, value in args.items():
                assert code(value) in row, f"{name}.{arg} = {value}"
                assert f"`{arg}`" in text


def test_the_example_is_a_task() -> None:
    example = re.search(r"```toml\n(\[task\].*?)```", SERVER, re.DOTALL)
    assert example is not None
    task = task_file.parse(example.group(1))
    assert task.round.target == 8
    stages = re.search(r"```toml\n(\[upload\].*?)```", SERVER, re.DOTALL)
    assert stages is not None
    codec_from_spec(spec_of(task_file.parse(f'[task]\nbundle = "b"\n{stages.group(1)}').upload), LAYOUT)


def test_what_may_change_is_what_the_code_lets_change() -> None:
    for key in (*task_changes.HARMLESS, "task.rounds"):
        name = key.split(".")[1]
        assert (f"`{name}`" if name != "bundle" else "where the bundle lies") in SERVER
    assert task_changes.HARMLESS_SECTIONS == ("round", "defence")


def test_the_tables_of_reliability_are_those_of_the_tests() -> None:
    text = render_faults.PAGE.read_text()
    assert render_faults.rendered(text) == text, "python -m tests.render_faults writes them anew"

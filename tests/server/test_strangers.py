"""What a stranger gets, as docs/server.md shows it: its commands are run, and say what stands there."""

import gzip
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from covey_server.limits import Buckets
from covey_shared.keys import generate
from covey_shared.signing import sign_request
from tests.helpers_server import Served, call, code_of, enroll, key_of, served, write_task

DOCS = Path(__file__).parent.parent.parent / "docs" / "server.md"


def transcript() -> list[tuple[str, list[str]]]:
    """Commands and what they print."""
    section = DOCS.read_text().partition("## What a stranger gets")[2].partition("\n## ")[0]
    blocks = re.findall(r"^    \$ (.*)\n((?:    .*\n)*)", section, re.MULTILINE)
    return [(command, [line.strip() for line in shown.splitlines()]) for command, shown in blocks]


def said(output: str) -> list[str]:
    """Of an answer the status, the code and the sentence; of anything else its lines."""
    if not output.startswith("HTTP/"):
        return [line.strip() for line in output.splitlines() if line.strip()]
    head, _, body = output.removeprefix("HTTP/1.1 100 Continue\n\n").partition("\n\n")
    refusal = json.loads(body)
    return [head.splitlines()[0].strip(), f"{refusal['code']}: {refusal['message']}"]


def files(server: Served, folder: Path) -> None:
    """Signed headers, as curl reads them, and a compressed bomb."""
    for name, key in (("signed", key_of("kitchen")), ("signed2", key_of("kitchen")), ("stranger", generate())):
        headers = sign_request(key, "GET", "/v1/task", b"", server.door.nonces.issue())
        (folder / name).write_text("".join(f"{key}: {value}\n" for key, value in headers.items()))
    (folder / "bomb.gz").write_bytes(gzip.compress(bytes(5_000_000)))


@pytest.mark.skipif(shutil.which("curl") is None or shutil.which("bash") is None, reason="needs curl and bash")
def test_the_transcript(tmp_path: Path) -> None:
    commands = transcript()
    assert len(commands) >= 10
    with served(write_task(tmp_path)) as server:
        assert enroll(server.url, "kitchen").status == 200
        server.door.is_open = False
        files(server, tmp_path)
        server.door.buckets = Buckets()
        named = {"SERVER": server.url, "ADMIN": server.admin, "JSON": "-H Accept:application/json"}
        for command, shown in commands:
            run = subprocess.run(
                ["bash", "-c", command], cwd=tmp_path, env={**os.environ, **named}, capture_output=True, text=True,
                timeout=60, check=False,
            )  # fmt: skip
            if "uniq -c" in command:  # a hundred at once, and as many as ten a second let through meanwhile
                counts = {int(status): int(count) for count, status in map(str.split, run.stdout.splitlines())}
                assert counts[200] + counts[429] == 300, run.stdout
                assert counts[429] > 50, run.stdout
            else:
                assert said(run.stdout) == shown, command
        server.door.buckets = Buckets()
        assert call(server.url, "GET", "/v1/task", who="kitchen").status == 200, "nobody else is the worse for it"
        assert code_of(call(server.url, "GET", "/v1/task", who="nobody").body) == "unknown_device"

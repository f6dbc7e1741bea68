"""Secrets and private text stay where they belong: planted strings are searched in what leaves and what is kept."""

import contextlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

from covey_shared.bundle import Bundle
from covey_shared.cli import main
from tests.helpers_server import MSGPACK, ServerProcess, call, send

TEXT = "the canary 4c7e sang in the coal mine until the gas came up the shaft\n"


def codes_of(run: Path, count: int) -> list[str]:
    command = [sys.executable, "-m", "covey_shared.cli", "enroll", "new", str(run), "--count", str(count), "--plain"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


def token_of(run: Path) -> str:
    command = [
        sys.executable,
        "-m",
        "covey_shared.cli",
        "admin",
        "new",
        str(run),
        "--role",
        "operator",
        "--label",
        "ann",
    ]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_nothing_secret_is_logged_stored_or_answered(lm: Bundle, tmp_path: Path) -> None:
    data, run = tmp_path / "canary-folder-4c7e", tmp_path / "run"
    data.mkdir()
    (data / "canary-file-4c7e.txt").write_text(TEXT * 60)
    task = tmp_path / "task.toml"
    task.write_text(
        f'[task]\nname = "test"\nbundle = "{lm.folder}"\nrounds = 1\n[round]\ntarget = 1\n[client]\nsteps = 2\n'
    )
    answers: list[bytes] = []
    with ServerProcess(task, "--codes", "--log-json", "--data-dir", str(run)) as server:
        url = server.url()
        used, unused = codes_of(run, 2)
        token = token_of(run)
        client = subprocess.run(
            [sys.executable, "-m", "covey_shared.cli", "join", f"{url}#{used}", "--data", str(data), "--runtime",
             "onnx", "--threads", "1", "--state", str(tmp_path / "state"), "--cache", str(tmp_path / "cache"),
             "--events", str(tmp_path / "events")],
            capture_output=True, text=True, check=False, env=dict(os.environ), timeout=120,
        )  # fmt: skip
        assert client.returncode == 0, client.stderr
        admin = (task.parent / "admin-url").read_text().strip()
        bearer = {"Authorization": f"Bearer {token}"}
        for headers in (bearer, {"Authorization": f"Bearer {token}x"}, {"Authorization": f"Basic {token}"}):
            answers += [
                send(admin, "GET", path, headers=headers).body for path in ("/v1/codes", "/v1/status", "/metrics", "/")
            ]
        for path in (f"/v1/{token}", f"/v1/task?code={unused}", f"/v1/updates/1/{unused}"):
            answers.append(send(url, "GET", path, headers={**bearer, "Cookie": unused, "X-Code": unused}).body)
        answers.append(send(url, "POST", "/v1/enroll", f"\xc1{unused}".encode("latin-1"), MSGPACK).body)
        answers.append(call(url, "GET", "/v1/task", who="stranger").body)
        code, out, err = server.stop()
    assert code == 0
    key = (tmp_path / "state" / "key").read_text().splitlines()[1]
    secrets = {
        "used code": used, "unused code": unused, "token": token, "token's random half": token.rpartition("_")[2],
        "private key": key, "text": "canary 4c7e", "file name": "canary-file-4c7e", "folder": "canary-folder-4c7e",
    }  # fmt: skip
    secrets |= {f"plain {name}": secrets[name].replace("-", "") for name in ("used code", "unused code")}
    kept = {str(path): path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert any(name.endswith("covey.sqlite") for name in kept)
    heard = {
        "stdout": out.encode(),
        "stderr": err.encode(),
        "client's output": (client.stdout + client.stderr).encode(),
    }
    for name, secret in secrets.items():
        for where, seen in {**kept, **heard, "answers": b"".join(answers)}.items():
            local = where == "client's output" and name in ("folder",)  # its own paths are its user's business
            assert local or secret.encode() not in seen, f"the {name} is in {where}"
    events = (tmp_path / "events").read_bytes()
    assert not any(secrets[name].encode() in events for name in ("used code", "private key", "text"))


def test_no_error_repeats_a_secret(tmp_path: Path, capsys: object) -> None:
    """What a person mistypes may hold the secret that was meant for elsewhere."""
    import pytest

    assert isinstance(capsys, pytest.CaptureFixture)
    data = tmp_path / "t.txt"
    data.write_text("x" * 1000)
    for url in (
        "htp://u:canary-secret@h/#canary-secret",
        "http://127.0.0.1:9/?code=canary-secret",
        "http://[::1#canary-secret",
    ):
        assert main(["join", url, "--data", str(data), "--wait", "0.1", "--state", str(tmp_path / "s")]) == 1
    with contextlib.suppress(SystemExit):
        main(
            [
                "join",
                "http://127.0.0.1:9#canary-secret",
                "--data",
                str(data),
                "--wait",
                "0.1",
                "--state",
                str(tmp_path / "s"),
            ]
        )
    said = capsys.readouterr()
    assert "canary-secret" not in said.out + said.err
    assert not re.search("canary-secret", json.dumps([p.name for p in tmp_path.rglob("*")]))

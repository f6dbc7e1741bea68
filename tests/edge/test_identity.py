"""The device's key: made once, for its owner alone; and how a device comes in with it."""

import stat
from pathlib import Path

import pytest

from covey_edge.identity import open_key
from covey_edge.join import Options
from covey_edge.transport import server_url
from covey_shared import keys
from covey_shared.bundle import Bundle
from covey_shared.cli import main
from covey_shared.errors import UsageError
from tests.helpers_edge_serving import serving


def test_the_key_is_made_once_and_for_its_owner_alone(tmp_path: Path) -> None:
    key = open_key(tmp_path)
    path = tmp_path / "key"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert open_key(tmp_path).public == key.public
    assert [p.name for p in tmp_path.iterdir()] == ["key"]


def test_a_p256_key_from_elsewhere_is_taken(tmp_path: Path) -> None:
    made = keys.generate("p256")
    (tmp_path / "key").touch(mode=0o600)
    (tmp_path / "key").write_bytes(made.to_pem())
    assert open_key(tmp_path).public == made.public


def test_a_key_that_others_may_read_or_that_is_damaged_is_refused(tmp_path: Path) -> None:
    open_key(tmp_path)
    path = tmp_path / "key"
    path.chmod(0o644)
    with pytest.raises(UsageError, match="may be read by others"):
        open_key(tmp_path)
    path.chmod(0o600)
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(UsageError, match="is damaged, so this device cannot prove who it is") as error:
        open_key(tmp_path)
    assert "PRIVATE" not in str(error.value)


def test_plain_http_is_for_this_machine() -> None:
    for url in ("http://192.0.2.1:8080", "http://example.org", "http://localhost.example.org"):
        with pytest.raises(UsageError, match="or accept that with --insecure-http"):
            server_url(url)
        assert server_url(url, insecure_http=True) == url
    assert server_url("https://example.org/#K7QF-9RTA-4MWX-Z2PC-8HNB") == "https://example.org"


def test_a_bad_address_does_not_repeat_what_may_be_a_secret() -> None:
    with pytest.raises(UsageError) as error:
        server_url("htps://user:canary@host/#canary")
    assert "canary" not in str(error.value)
    assert Options(server="x", data=Path()).code == ""


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("the cat sat on the mat and the dog lay on the log\n" * 60)
    return path


def test_coming_in_with_a_code_and_staying(
    lm: Bundle, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(lm, tmp_path / "server", rounds=2, is_open=False) as server:
        places = ["--data", str(text), "--runtime", "onnx", "--threads", "1", "--once", "--quiet",
                  "--state", str(tmp_path / "d"), "--cache", str(tmp_path / "cache")]  # fmt: skip
        assert main(["join", server.url, *places]) == 1
        said = capsys.readouterr().err
        assert "this device is not enrolled here: ask the operator for a code, and join with --code" in said
        assert said.count("\n") == 1
        assert main(["enroll", "new", str(tmp_path / "server" / "run"), "--plain", "--name", "kitchen"]) == 0
        code = capsys.readouterr().out.strip()
        assert main(["join", f"{server.url}#{code}", *places]) == 0
        assert "1 updates of kitchen were counted" in capsys.readouterr().out
        assert main(["join", server.url, *places, "--code", code]) == 0, "the same line goes on"
        assert "2 updates of kitchen were counted" in capsys.readouterr().out
        for path in (tmp_path / "d").iterdir():
            assert code.encode() not in path.read_bytes()

"""The `covey` command: what it finds, and how each kind of failure ends: one sentence and an exit code."""

import argparse
import errno
import subprocess
import sys
from collections.abc import Callable
from typing import NoReturn

import pytest

from covey_shared import __version__, cli
from covey_shared.errors import BundleError


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--times", type=int, default=1)


class Point:
    """An entry point, as importlib.metadata gives it."""

    def __init__(self, name: str, run: Callable[[argparse.Namespace], int]):
        self.name, self.run = name, run

    def load(self) -> cli.Command:
        return cli.Command("does a thing", configure, self.run, "edge")


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[argparse.Namespace], int]], None]:
    """Makes `covey thing` run the given function."""

    def install(run: Callable[[argparse.Namespace], int]) -> None:
        monkeypatch.setattr(cli, "entry_points", lambda group: [Point("thing", run)])

    return install


def failing(error: BaseException) -> Callable[[argparse.Namespace], int]:
    def run(args: argparse.Namespace) -> NoReturn:
        raise error

    return run


Install = Callable[[Callable[[argparse.Namespace], int]], None]


def test_arguments_reach_the_command(command: Install) -> None:
    command(lambda args: int(args.times))
    assert cli.main(["thing", "--times", "7"]) == 7


def test_no_command_prints_the_chain(command: Install, capsys: pytest.CaptureFixture[str]) -> None:
    command(lambda args: 0)
    assert cli.main([]) == 2
    assert "covey export MODEL --out BUNDLE" in capsys.readouterr().out


FULL = OSError(errno.ENOSPC, "No space left on device", "/data/x")
NO_TORCH = "needs the module 'torch', which is not installed: pip install 'covey[edge]'"
FAILURES: list[tuple[BaseException, int, str]] = [
    (BundleError("the bundle is damaged"), 1, "covey thing: the bundle is damaged\n"),
    (ModuleNotFoundError("no", name="torch"), 1, f"covey thing {NO_TORCH}\n"),
    (FULL, 1, "covey thing: No space left on device (/data/x)\n"),
    (OSError("odd"), 1, "covey thing: odd\n"),
    (KeyboardInterrupt(), 130, "covey thing: stopped\n"),
]


@pytest.mark.parametrize(("error", "code", "text"), FAILURES, ids=lambda x: type(x).__name__)
def test_failures(
    command: Install, capsys: pytest.CaptureFixture[str], error: BaseException, code: int, text: str
) -> None:
    command(failing(error))
    assert cli.main(["thing"]) == code
    assert capsys.readouterr().err == text


@pytest.mark.parametrize("error", [ModuleNotFoundError("no", name="covey_shared.gone"), ZeroDivisionError()], ids=repr)
def test_our_own_bugs_keep_their_traceback(command: Install, error: Exception) -> None:
    command(failing(error))
    with pytest.raises(type(error)):
        cli.main(["thing"])


def covey(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "covey_shared.cli", *args], capture_output=True, text=True, check=False
    )


def test_the_real_command_lists_what_is_installed() -> None:
    run = covey("--help")
    assert run.returncode == 0
    for name in ("export", "serve", "join", "demo"):
        assert f"\n    {name} " in run.stdout
    assert covey("--version").stdout == f"covey {__version__}\n"
    assert covey("exprot").returncode == 2


def test_help_is_quick_because_it_loads_nothing_heavy() -> None:
    code = "import sys; from covey_shared import cli; cli.build_parser(); print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in run.stdout.split()}
    assert not loaded & {"torch", "transformers", "onnxruntime", "executorch", "peft", "onnx", "matplotlib", "rich"}


def test_a_closed_pipe_is_no_error() -> None:
    code = f"{sys.executable} -m covey_shared.cli --help | true"
    run = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=False)
    assert "Traceback" not in run.stderr


def test_a_group_lists_its_actions_and_runs_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Pair:
        name = "pair"

        def load(self) -> cli.Group:
            return cli.Group("two things", "covey.pair")

    points = {"covey.commands": [Pair()], "covey.pair": [Point("thing", failing(BundleError("no")))]}
    monkeypatch.setattr(cli, "entry_points", lambda group: points[group])
    assert cli.main(["pair"]) == 2
    assert "    thing " in capsys.readouterr().out
    assert cli.main(["pair", "thing"]) == 1
    assert capsys.readouterr().err == "covey pair thing: no\n"
    with pytest.raises(SystemExit):
        cli.main(["pair", "other"])

"""The JVM client of android_demo/core beside Python clients, with the real server and the real ExecuTorch runtime.

android_demo/check.sh compiles the client and runs this; COVEY_CLASSPATH says where the classes are.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from covey_shared.bundle import Bundle
from tests.test_end_to_end import Run, bundle, covey, finish, new_run, texts  # noqa: F401  (fixtures)

pytest.importorskip("executorch", reason="the JVM client trains with ExecuTorch")
CLASSPATH = os.environ.get("COVEY_CLASSPATH", "")
pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.skipif(not CLASSPATH, reason="the JVM client is compiled and tested by android_demo/check.sh"),
]
TRAINER = Path(__file__).parent.parent.parent / "android_demo" / "core" / "src" / "test" / "python" / "trainer.py"


class Jvm:
    """A JVM client and what it printed so far, in a file that survives it."""

    def __init__(self, run: Run, name: str):
        self.run, self.name, self.log = run, name, run.folder / f"{name}.jvm.log"
        self.process: subprocess.Popen[bytes]

    def start(self, *more: str) -> "Jvm":
        run = self.run
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                ["java", "-Xmx256m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-cp", CLASSPATH,
                 "covey.core.cli.MainKt", run.url, "--data", str(run.texts / self.name), "--name", self.name,
                 "--state", str(run.folder / f"{self.name}-jvm"), "--cache", str(run.folder / "jvm-cache"),
                 "--python", sys.executable, "--trainer", str(TRAINER), "--eval-batches", "4", *more],
                stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip
        return self

    def lines(self, event: str) -> list[str]:
        return [line for line in self.log.read_text().splitlines() if line.startswith(event + " ")]

    def wait_for(self, event: str, count: int) -> None:
        deadline = time.monotonic() + 120
        while len(self.lines(event)) < count:
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.01)

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def finish(self, code: int = 0) -> None:
        assert self.process.wait(timeout=300) == code, self.log.read_text()


def difference(a: dict[str, np.ndarray], b: dict[str, np.ndarray], start: dict[str, np.ndarray]) -> float:
    """How far two adapters are apart, as a share of how far the first came."""
    assert a.keys() == b.keys()
    apart = sum(float(np.square(a[k] - b[k], dtype=np.float64).sum()) for k in a)
    moved = sum(float(np.square(a[k] - start[k], dtype=np.float64).sum()) for k in a)
    return float(np.sqrt(apart / moved))


def test_jvm_client_killed_and_resumed_gives_what_a_python_client_gives(new_run: Any, bundle: Path) -> None:  # noqa: F811
    calm = new_run("calm", 2)
    server = calm.serve()
    for process in [calm.join("ada", "executorch"), calm.join("grace", "onnx"), server]:
        finish(process)

    rough = new_run("rough", 2)
    server, witness = rough.serve(), None
    jvm = Jvm(rough, "ada").start()
    witness = rough.join("grace", "onnx")
    jvm.wait_for("stepped", 3)  # in the middle of round 1
    jvm.kill()
    jvm.start()
    jvm.wait_for("uploaded", 1)
    jvm.wait_for("stepped", 9)  # in the middle of round 2
    jvm.kill()
    jvm.start()
    jvm.finish()
    for process in (witness, server):
        finish(process)

    assert any("going on with round" in line for line in jvm.lines("notice"))
    assert [line.split("status=")[1] for line in jvm.lines("uploaded")] == ["accepted"] * 3
    loaded = Bundle.open(bundle)
    start = loaded.manifest.layout.split(loaded.start(7))
    assert difference(calm.adapter(), rough.adapter(), start) < 1e-4
    print(f"JVM and Python differ by {difference(calm.adapter(), rough.adapter(), start):.1e} of the way")


def test_jvm_client_enrols_by_code_keeps_its_tensors_and_hears_that_it_is_revoked(new_run: Any, bundle: Path) -> None:  # noqa: F811
    runs = {name: new_run(name, 1) for name in ("python", "jvm")}
    for run in runs.values():
        run.task.write_text(run.task.read_text() + '[personal]\npolicy = "fedsa"\n')
    server = runs["python"].serve()
    for process in (runs["python"].join("ada", "executorch"), server):
        finish(process)

    run = runs["jvm"]
    server = run.serve()
    folder = str(run.folder / "data")
    code = finish(covey("enroll", "new", folder, "--name", "ada", "--plain")).strip()
    jvm = Jvm(run, "ada").start("--code", "WRONG-CODE-0000")
    jvm.finish(1)
    assert "covey-jvm: " in jvm.log.read_text()
    lost = Jvm(run, "grace")
    lost.start(
        "--code", finish(covey("enroll", "new", folder, "--plain")).strip(), "--data", str(run.folder / "nowhere")
    )
    lost.finish(1)  # enrolled, but without a text
    finish(covey("enroll", "revoke", "grace", folder))
    lost.start().finish(1)
    assert "revoked" in lost.log.read_text().splitlines()[-1]
    jvm.start("--code", code)
    jvm.wait_for("uploaded", 3)
    jvm.finish()
    finish(server)
    loaded = Bundle.open(bundle)
    start = loaded.manifest.layout.split(loaded.start(7))
    expected, got = runs["python"].adapter(), run.adapter()
    shared = [k for k in expected if "lora_A" in k]
    assert difference({k: expected[k] for k in shared}, {k: got[k] for k in shared}, start) < 1e-4

"""Coverage-guided fuzzing with atheris (libFuzzer): `make fuzz SECONDS=600` splits the time over the targets.

    python -m tests.fuzz.run --seconds 600        all targets, each in a process of its own
    python -m tests.fuzz.run --target spk1 ...    one, with libFuzzer's own options

A finding is written to tests/fuzz/findings, and belongs into tests/fuzz/corpus/TARGET with the fix: what lies there is
run by every `make test`.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
CORPUS, FINDINGS = HERE / "corpus", HERE / "findings"


class Result(NamedTuple):
    """What one target's run came to. `features` is libFuzzer's measure of coverage."""

    target: str
    runs: int
    seconds: float
    features: int
    findings: tuple[str, ...]


def fuzz_one(name: str, options: list[str]) -> None:
    """In this process, which does not come back: libFuzzer ends it."""
    import atheris

    with atheris.instrument_imports(include=["covey_shared", "covey_server"]):
        from tests.fuzz.targets import TARGETS
    run = TARGETS[name].run
    atheris.Setup([sys.argv[0], *options], lambda data: run(data) and None)
    atheris.Fuzz()


def measure(name: str, seconds: int) -> Result:
    """One target for a while, from its seeds and the kept corpus."""
    from tests.fuzz.targets import TARGETS

    FINDINGS.mkdir(exist_ok=True)
    before = set(FINDINGS.iterdir())
    with tempfile.TemporaryDirectory() as folder:
        for number, seed in enumerate(TARGETS[name].seeds()):
            (Path(folder) / f"seed-{number}").write_bytes(seed)
        kept = [str(CORPUS / name)] if (CORPUS / name).is_dir() else []
        command = [
            sys.executable, "-m", "tests.fuzz.run", "--target", name, folder, *kept, f"-max_total_time={seconds}",
            "-timeout=5", "-rss_limit_mb=1024", "-max_len=8192", f"-artifact_prefix={FINDINGS}/{name}-",
        ]  # fmt: skip
        begun = time.monotonic()
        done = subprocess.run(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, check=False)
    counts = re.findall(r"^#(\d+)\s.* ft: (\d+)", done.stderr, re.MULTILINE)
    runs, features = (int(counts[-1][0]), int(counts[-1][1])) if counts else (0, 0)
    total = re.search(r"Done (\d+) runs", done.stderr)
    found = tuple(sorted(p.name for p in set(FINDINGS.iterdir()) - before))
    if not counts or (done.returncode and not found):
        print(done.stderr[-2000:], file=sys.stderr)
    return Result(name, int(total[1]) if total else runs, time.monotonic() - begun, features, found)


def main() -> int:
    """Report executions and findings; 1 if there are any."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--target")
    parser.add_argument("--seconds", type=int, default=60)
    args, options = parser.parse_known_args()
    if args.target:
        fuzz_one(args.target, options)
    from tests.fuzz.targets import TARGETS

    share = max(1, args.seconds // len(TARGETS))
    results = []
    for name in TARGETS:
        results.append(measure(name, share))
        r = results[-1]
        line = f"{r.target:<11} {r.runs:>11,} runs {r.seconds:>7.0f} s {r.features:>7,} features"
        print(f"{line}  {len(r.findings)} findings", flush=True)
    print(f"{'all':<11} {sum(r.runs for r in results):>11,} runs {sum(r.seconds for r in results):>7.0f} s")
    for r in results:
        for name in r.findings:
            print(f"finding: {FINDINGS / name}")
    return 1 if any(r.findings for r in results) else 0


if __name__ == "__main__":
    sys.exit(main())

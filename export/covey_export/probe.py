"""Run a bundle's graphs in a process of their own: `python -m covey_export.probe TARGET FOLDER PATHS`.

Reads `probe-in.npz` and writes `probe-out.npz` in the folder, and prints one line of JSON: the peak of resident memory
that loading the training graph and running it added, in bytes, and the median time of a step in seconds. A process of
its own, since a runtime may abort, and since only there is the memory its own.
"""

import json
import resource
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from covey_export.roles import ROLES, inputs_of
from covey_export.runtimes import load_library, open_role
from covey_export.threads import wait_passively

STEPS = 5


def main(target: str, folder: Path, paths: Mapping[str, str]) -> None:
    """Run each role once, the training one a few times."""
    with np.load(folder / "probe-in.npz") as given:
        inputs = dict(given)
    outputs: dict[str, Any] = {}
    cost: dict[str, float] = {}
    wait_passively()
    load_library(target)
    for role, names in ROLES.items():
        before = resident_bytes("VmRSS")
        run = open_role(target, folder, paths, role)
        given_here = {name: inputs[name] for name in inputs_of(role, inputs)}
        outputs.update(zip(names, run(given_here), strict=True))
        if role == "train":
            cost["step_seconds"] = median(_seconds(run, given_here) for _ in range(STEPS))
            cost["peak_bytes"] = max(0, resident_bytes("VmHWM") - before)
    np.savez(folder / "probe-out.npz", **outputs)
    print(json.dumps(cost))


def resident_bytes(field: str) -> int:
    """VmRSS (now) or VmHWM (peak) of this process; where there is no /proc, the peak that getrusage knows.

    getrusage alone would not do: on Linux its peak is inherited from the process that started this one.
    """
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
    return 1024 * int(status.split(f"{field}:")[1].split()[0])


def _seconds(run: Callable[[Any], Any], inputs: Any) -> float:
    start = time.perf_counter()
    run(inputs)
    return time.perf_counter() - start


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3]))

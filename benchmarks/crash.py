"""SIGKILL a server N times, at its failpoints and at random, in both modes, and count what was lost.

    python benchmarks/crash.py --kills 1000

Devices keep their bytes until they have a receipt, lose answers, hang up in the middle and send duplicates. The oracle
is that of tests/helpers_crash.py: every acknowledged update counted exactly once, nothing else counted, no version
without its blobs, the head never back, and all versions the same bits as a run over the same updates without a fault.
"""

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from report import write_report

from tests.helpers_crash import PLACES, Campaign

EACH = 250  # kills of one run; the next begins with an empty folder and another seed


def campaign(mode: str, kills: int, seed: int) -> tuple[dict[str, int], Counter[str], float]:
    """One run with that many kills: every place in turn, each followed by a random moment."""
    with tempfile.TemporaryDirectory(prefix="covey-crash-") as folder:
        run, begun = Campaign(Path(folder), mode, seed), time.monotonic()
        places = [place for place in PLACES if not place.startswith("beginning") or place == PLACES[0]]
        for number in range(kills):
            place = places[number // 2 % len(places)]
            if number % 2 or (place.startswith("beginning") and number):
                run.kill_after(0.01 + 0.25 * run.random.random() ** 2)
            else:
                run.kill_at(place)
            if number % 50 == 49:
                print(f"  {mode}: {number + 1} of {kills} kills, {time.monotonic() - begun:.0f} s", flush=True)
        found = run.finish()
        return found, run.kills, time.monotonic() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=1000, help="in all, half in each mode (default 1000)")
    parser.add_argument("--quick", action="store_true", help="60 kills; writes no report")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    kills = 60 if args.quick else args.kills
    rows: list[dict[str, Any]] = []
    where: Counter[str] = Counter()
    for mode in ("sync", "async"):
        left, seed = (kills + (mode == "sync")) // 2, args.seed
        total: Counter[str] = Counter()
        while left:
            found, places, seconds = campaign(mode, min(left, EACH), seed)
            left, seed = left - min(left, EACH), seed + 1
            total.update({**found, "seconds": round(seconds)})
            where.update(places)
        rows.append({"mode": mode, **total})
    print(f"\n{'':12}" + "".join(f"{name:>15}" for name in rows[0] if name != "mode"))
    for row in rows:
        print(f"{row['mode']:12}" + "".join(f"{value:>15}" for name, value in row.items() if name != "mode"))
    print("\nkilled at: " + ", ".join(f"{name} {count}" for name, count in sorted(where.items())))
    if not args.quick:
        write_report("crash", {"killed_at": ", ".join(f"{n} {c}" for n, c in sorted(where.items()))}, rows)


if __name__ == "__main__":
    main()

"""Places at which a test can have the process killed: `failpoint("name")` does nothing unless the environment arms it.

    COVEY_FAILPOINT=published:2           SIGKILL when "published" is reached for the second time
    COVEY_FAILPOINT=checkpoint:1:0.0005   ... half a millisecond after "checkpoint" was reached: in the midst of it

The environment is read once, when this module is imported, so an unarmed server pays one comparison. SIGKILL because
nothing may be tidied up: no handler runs, no buffer is flushed, as in a crash of the machine (what was written but not
synced survives, though: it takes a power cut to lose that).

    beginning        K0   version 0 is on disk, the run is not      blob-written     K8   its temporary file is there
    received         K1   an upload's headers were read             blob-renamed     K9   the blob has its name
    body             K2   some of its body has come                 publishing       K10  before the commit of a head
    appended         K3   its bytes are in the segment              published        K10  after it, nobody was told
    synced           K4   ... and on disk                           deleting         K10  leftovers not yet deleted
    committing       K5   before a commit                           adapter-written  K10  not yet renamed to its version
    committed        K6   after it, before any answer               adapter-linked   K10  `latest` still the one before
    assigned         K6   an assignment, before its commit          checkpoint       K11  the log goes into the database
    frozen           K7   a version's set of updates is final       migrating        K12  before a migration's commit
                                                                    backup           K13  a backup is half done
"""

import os
import signal
from threading import Timer

POINTS = (
    "beginning", "received", "body", "appended", "synced", "committing", "committed", "assigned", "frozen",
    "blob-written", "blob-renamed", "publishing", "published", "deleting", "adapter-written", "adapter-linked",
    "checkpoint", "migrating", "backup",
)  # fmt: skip

_name, _left, _delay_s = "", 0, 0.0


def arm(text: str) -> None:
    """Arm the one failpoint that `text` names, `NAME[:HIT[:SECONDS]]`; an empty text disarms."""
    global _name, _left, _delay_s
    name, hit, delay_s, *_ = [*text.split(":"), "", ""]
    if name and name not in POINTS:
        raise ValueError(f"COVEY_FAILPOINT names {name!r}, which is no failpoint; known: {', '.join(POINTS)}")
    _name, _left, _delay_s = name, int(hit or 1), float(delay_s or 0)


def failpoint(name: str) -> None:
    """Kill the process here, if this is the place and the time."""
    global _left
    if name != _name:
        return
    _left -= 1
    if _left == 0 and _delay_s:
        Timer(_delay_s, os.kill, (os.getpid(), signal.SIGKILL)).start()
    elif _left == 0:
        os.kill(os.getpid(), signal.SIGKILL)


arm(os.environ.get("COVEY_FAILPOINT", ""))

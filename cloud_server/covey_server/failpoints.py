"""Places at which a test can have the process killed: `failpoint("name")` does nothing unless the environment arms it.

    COVEY_FAILPOINT=published:2           SIGKILL when "published" is reached for the second time
    COVEY_FAILPOINT=checkpoint:1:0.0005   ... half a millisecond after "checkpoint" was reached: in the midst of it

The environment is read once, when this module is imported, so an unarmed server pays one comparison. SIGKILL because
nothing may be tidied up: no handler runs, no buffer is flushed, as in a crash of the machine (what was written but not
synced survives, though: it takes a power cut to lose that).

    K1 received      an upload's headers were read       K8  blob-written    a blob's temporary file is on disk
    K2 body          some of its body has come           K9  blob-renamed    it has its name
    K3 appended      its bytes are in the segment        K10 publishing      before the commit that moves the head
    K4 synced        ... and on disk                     K10 published       after it, nobody has been told
    K5 committing    before the commit of its row        K11 checkpoint      the database has just been checkpointed
    K6 committed     after it, before the receipt        K12 migrating       inside a migration's transaction
    K7 frozen        a version's set of updates is final K13 backup          a backup is half done
"""

import os
import signal
from threading import Timer

POINTS = (
    "received", "body", "appended", "synced", "committing", "committed", "assigned", "frozen", "blob-written",
    "blob-renamed", "publishing", "published", "deleting", "checkpoint", "migrating", "backup",
)  # fmt: skip

_name, _hit, _delay_s, *_ = [*os.environ.get("COVEY_FAILPOINT", "").split(":"), "", ""]
_left = int(_hit or 1)


def failpoint(name: str) -> None:
    """Kill the process here, if this is the place and the time."""
    global _left
    if name != _name:
        return
    _left -= 1
    if _left == 0 and _delay_s:
        Timer(float(_delay_s), os.kill, (os.getpid(), signal.SIGKILL)).start()
    elif _left == 0:
        os.kill(os.getpid(), signal.SIGKILL)

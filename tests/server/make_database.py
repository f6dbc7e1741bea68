"""Keeps a run of today's schema for the migration tests of tomorrow's. Run it before a step is added to schema.py:

    python -m tests.server.make_database

writes tests/server/databases/N: a run of two devices that was stopped in its second round, with one update accepted.
"""

import shutil
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path

from covey_server.schema import SCHEMA
from tests.helpers_server import served, write_task

HERE = Path(__file__).parent / "databases"


def main() -> None:
    """Make the folder afresh."""
    out = HERE / str(len(SCHEMA))
    shutil.rmtree(out, ignore_errors=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with served(write_task(folder, '[upload]\ncodec = "sign"\n'), folder / "run") as server:
            devices = [server.device("a"), server.device("b")]
            for device in devices:
                device.take_part(server.start)
            server.wait_for_version(1)
            devices[0].fetch(1, server.start)
            devices[0].evaluate(1.5)
            devices[0].take_part(server.start)
            devices[1].check_in()
        for part in ("blobs", "segments"):
            shutil.copytree(folder / "run" / part, out / part)
        with closing(sqlite3.connect(folder / "run" / "covey.sqlite")) as db:
            text = "\n".join(db.iterdump()).replace(name, "")
        (out / "covey.sql").write_text(f"{text}\nPRAGMA user_version={len(SCHEMA)};\n")


if __name__ == "__main__":
    main()

"""Threads share two heaps of the C library's, where it is one that can be told to."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

COUNT = """
import ctypes, sys, threading
from covey_server.heaps import share_heaps
shared = sys.argv[1] == "shared" and share_heaps()
barrier = threading.Barrier(8)
def work():
    kept = [bytes(1000 + i) for i in range(2000)]
    barrier.wait()
threads = [threading.Thread(target=work) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
libc = ctypes.CDLL(None)
libc.fopen.restype = ctypes.c_void_p
file = ctypes.c_void_p(libc.fopen(sys.argv[2].encode(), b"w"))
libc.malloc_info(0, file)
libc.fclose(file)
print(shared)
"""


def heaps(how: str, path: Path) -> tuple[bool, int]:
    """Whether heaps are shared, and how many there are after eight threads."""
    done = subprocess.run([sys.executable, "-c", COUNT, how, str(path)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("no glibc")
    return done.stdout.strip() == "True", len(re.findall("<heap nr", path.read_text()))


def test_threads_share_heaps(tmp_path: Path) -> None:
    shared, few = heaps("shared", tmp_path / "a")
    if not shared:
        pytest.skip("the C library has no such setting")
    _, many = heaps("not", tmp_path / "b")
    assert few <= 2 < many

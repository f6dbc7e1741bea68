"""How the process's memory is laid out: a server should need as much after a month as after its first rounds.

glibc gives each new thread a heap of its own, and each of them keeps the size of the largest update or fold that its
thread ever did. With ten million entries that is hundreds of megabytes which no one round needs. Two heaps are enough
for threads that share one interpreter.
"""

import ctypes

M_ARENA_MAX = -8  # of malloc.h
HEAPS = 2


def share_heaps() -> bool:
    """Let threads share heaps; before any thread is started. False where the C library has no such setting."""
    try:
        return bool(ctypes.CDLL(None).mallopt(M_ARENA_MAX, HEAPS))
    except (OSError, AttributeError, TypeError):  # musl, macOS, Windows
        return False

"""How PyTorch's threads wait for each other."""

import os


def wait_passively() -> None:
    """Let OpenMP's threads sleep while they wait; call it before PyTorch is imported, which reads it once.

    By default they spin. On a machine with other work each spins through whole time slices that the thread it waits for
    needs: a step of 0.2 s was seen to take 8 s. On an idle machine it costs little.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

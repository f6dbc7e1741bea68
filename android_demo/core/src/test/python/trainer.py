"""The ExecuTorch runtime in a process of its own, for a JVM that has none: run by the JVM client of the tests.

    python trainer.py BUNDLE_FOLDER

It runs the same `.pte` as a phone does. Requests come on standard input, answers go to standard output, all numbers
little-endian. First answer: rows and columns of a batch and entries of the adapter, three u32. Then for each request

    b"T", adapter f32 [n], inputs i64 [B, T], labels i64 [B, T]   ->   loss f64, gradient f32 [n]
    b"E", the same                                                ->   loss_sum f64, tokens i64, correct i64
    b"S", second adapter f32 [m]                                  ->   nothing; it is added from then on

The labels of a classifier are i64 [B].

It ends when its standard input does, so it does not outlive a client that was killed.
"""

import math
import os
import struct
import sys
from pathlib import Path
from typing import BinaryIO

import numpy as np

from covey_edge.data import Batch
from covey_edge.trainers import GraphTrainer, open_trainer
from covey_shared.bundle import Bundle


def read(stream: BinaryIO, length: int) -> bytes:
    """Exactly so many bytes; ends the process where the stream ends."""
    data = stream.read(length)
    if len(data) < length:
        sys.exit(0)
    return data


def serve(bundle: Bundle, requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer requests until there are no more."""
    plain = open_trainer(bundle, "executorch", threads=1)
    assert isinstance(plain, GraphTrainer)
    trainer, manifest = plain, bundle.manifest
    n, rows, columns = manifest.layout.size, manifest.batch_size, manifest.seq_len
    answers.write(struct.pack("<III", rows, columns, n))
    answers.flush()
    while True:
        what = read(requests, 1)
        if what == b"S":
            second = manifest.frozen.size if manifest.frozen else 0
            trainer = plain.with_frozen(np.frombuffer(read(requests, 4 * second), "<f4").astype(np.float32))
            continue
        adapter = np.frombuffer(read(requests, 4 * n), "<f4").astype(np.float32)
        shapes = (rows, columns), (rows,) if manifest.labels else (rows, columns)
        inputs, labels = (
            np.frombuffer(read(requests, 8 * math.prod(shape)), "<i8").astype(np.int64).reshape(shape)
            for shape in shapes
        )
        if what == b"T":
            loss, gradient = trainer.loss_and_gradient(adapter, Batch(inputs, labels))
            answers.write(struct.pack("<d", loss) + gradient.astype("<f4").tobytes())
        else:
            score = trainer.evaluate(adapter, Batch(inputs, labels))
            answers.write(struct.pack("<dqq", score.loss_sum, score.tokens, score.correct))
        answers.flush()


def main() -> None:
    """Keep standard output for answers: the runtime's own messages go to standard error."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    serve(Bundle.open(Path(sys.argv[1]), target="executorch", verify=False), sys.stdin.buffer, answers)


if __name__ == "__main__":
    main()

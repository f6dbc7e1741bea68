"""Flower's own FedAvg over all clients, each round timed from configuring it to having aggregated it."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


class Timed(FedAvg):
    """FedAvg that remembers when."""

    def __init__(self, **options: Any):
        super().__init__(**options)
        self.seconds: list[float] = []

    def configure_train(self, *args: Any, **kwargs: Any) -> Any:
        """Begins a round."""
        self._began = time.perf_counter()
        return super().configure_train(*args, **kwargs)

    def aggregate_train(self, *args: Any, **kwargs: Any) -> Any:
        """Ends a round."""
        result = super().aggregate_train(*args, **kwargs)
        self.seconds.append(time.perf_counter() - self._began)
        return result


@app.main()
def main(grid: Grid, context: Context) -> None:
    """All rounds; the times and how far the array moved go to the file `out`."""
    config: Any = context.run_config
    wanted = int(config["clients"])
    strategy = Timed(fraction_train=1.0, fraction_evaluate=0.0, min_train_nodes=wanted, min_available_nodes=wanted)
    start = np.random.default_rng(0).standard_normal(int(config["entries"]), np.float32)  # nothing to compress
    result = strategy.start(grid=grid, initial_arrays=ArrayRecord([start]), num_rounds=int(config["rounds"]))
    moved = float((result.arrays.to_numpy_ndarrays()[0] - start).mean())
    Path(config["out"]).write_text(json.dumps({"seconds": strategy.seconds, "moved": moved}))

"""The aggregator: round engine, strategies, server optimisers, store and HTTP. Runs without torch."""

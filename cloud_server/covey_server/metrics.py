"""What an operator watches, in the form that Prometheus scrapes.

Names follow its conventions: a unit in the name, counters end in `_total`, labels have few values. No device's name is
a label: that would tell about people and grow without bound. Counters begin at zero with the process; what has to
survive a restart is in the database and in /v1/status.
"""

from functools import cache

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import choose_encoder

FAST = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
SLOW = (0.01, 0.1, 1.0, 10.0, 60.0, 300.0, 600.0, 1800.0, 3600.0, 86_400.0)
VERSIONS = (0, 1, 2, 3, 5, 10, 20, 50, 100)
MANY = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """The metrics of one served run, in a registry of their own."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self.body_bytes = Counter(
            "covey_body_bytes", "Bytes of bodies, without headers", ["route", "direction"], registry=registry
        )
        self.requests = Histogram(
            "covey_request_seconds", "From a request's headers to its answer", ["route"], buckets=FAST,
            registry=registry,
        )  # fmt: skip
        self.refusals = Counter("covey_refusals", "Requests refused, by code", ["code"], registry=registry)
        self.updates = Counter(
            "covey_updates_acknowledged", "Receipts sent: accepted, or duplicate", ["status"], registry=registry
        )
        self.staleness = Histogram(
            "covey_update_staleness_versions", "Staleness of accepted updates", buckets=VERSIONS, registry=registry
        )
        self.commits = Histogram(
            "covey_commit_seconds", "A transaction with its syncs", buckets=FAST, registry=registry
        )
        self.pieces = Histogram(
            "covey_commit_pieces", "Pieces of work that shared a commit", buckets=MANY, registry=registry
        )
        self.fold = Histogram(
            "covey_fold_seconds", "Decoding and averaging a version's updates", buckets=FAST, registry=registry
        )
        self.rounds = Histogram("covey_round_seconds", "From one version to the next", buckets=SLOW, registry=registry)
        self.loop_lag = Histogram(
            "covey_loop_lag_seconds", "How late the event loop woke up", buckets=FAST, registry=registry
        )
        self.version = Gauge("covey_version", "The newest version", registry=registry)
        self.gathered = Gauge("covey_round_updates", "Updates of the version being made", registry=registry)
        self.held_out = Gauge(
            "covey_held_out_loss_nats",
            "Mean held-out loss of the version before the newest, of the last when done; personal: with devices' own",
            ["kind"], registry=registry,
        )  # fmt: skip
        self.in_flight = Gauge("covey_requests_in_flight", "Requests being answered", registry=registry)
        ProcessCollector(registry=registry)
        # Children by their labels, of which there are few: prometheus-client's own look-up takes a lock.
        self.request_seconds = cache(self.requests.labels)
        self.bytes_of = cache(self.body_bytes.labels)

    def committed(self, pieces: int, seconds: float) -> None:
        """A transaction is on disk; called by the database's thread."""
        self.pieces.observe(pieces)
        self.commits.observe(seconds)

    def render(self, accept: str) -> tuple[bytes, str]:
        """The exposition and its content type: OpenMetrics where it is accepted, else Prometheus' text."""
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type

"""Every message of protocol version 1, as frozen dataclasses that validate themselves; `schema` has their msgpack form.

What this does not know: HTTP, storage, and what the bytes of a codec mean.
"""

from dataclasses import dataclass

from covey_shared.schema import Message, Scalar, check_digest, check_name, require

PROTOCOL = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSpec(Message):
    """One stage of a codec chain: a name from the closed table and its plain arguments."""

    name: str
    args: dict[str, Scalar]

    def __post_init__(self) -> None:
        check_name("a stage name", self.name)


Spec = tuple[StageSpec, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalConfig(Message):
    """What a device does between download and upload.

    `optimizer` is `sgd` (with `momentum`) or `adamw` (`beta1`, `beta2`, `eps`, `weight_decay`); `steps` optimiser steps
    of one batch each; `clip_norm` bounds the gradient's L2 norm (0 = off); `error_feedback` keeps what the codec
    dropped and adds it to the next round's change.
    """

    optimizer: str
    learning_rate: float
    steps: int
    momentum: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    clip_norm: float
    error_feedback: bool

    def __post_init__(self) -> None:
        require(self.optimizer in ("sgd", "adamw"), f"optimizer must be 'sgd' or 'adamw', got {self.optimizer[:40]!r}")
        require(self.learning_rate > 0, f"learning_rate must be above 0, got {self.learning_rate}")
        require(0 < self.steps <= 1_000_000, f"steps must be 1 to 1,000,000, got {self.steps}")
        for name in ("momentum", "beta1", "beta2"):
            require(0 <= getattr(self, name) < 1, f"{name} must be in [0, 1), got {getattr(self, name)}")
        for name in ("eps", "weight_decay", "clip_norm"):
            require(getattr(self, name) >= 0, f"{name} must not be negative, got {getattr(self, name)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharing(Message):
    """What of the adapter travels; `covey_shared.sharing` says what follows. By default all of it does.

    The texts are patterns of tensor names, or `kind:K`. `personal` tensors stay on the device. `fixed` ones keep their
    seeded start. `fresh` ones start anew each round and do not travel down. Round r trains what matches one of
    phases[(r - 1) % len(phases)]; no phases: everything. A device trains one of `ranks`; none: the bundle's rank.
    With `second` the graphs' second adapter travels down behind the first. `cohort` tensors are shared within each of
    `cohorts` groups. With `fusion` (factorwise or concatenated) devices keep a personal adapter besides, brought up to
    date every `sync_every` rounds.
    """

    personal: tuple[str, ...] = ()
    fixed: tuple[str, ...] = ()
    fresh: tuple[str, ...] = ()
    phases: tuple[tuple[str, ...], ...] = ()
    ranks: tuple[int, ...] = ()
    second: bool = False
    cohort: tuple[str, ...] = ()
    cohorts: int = 0
    fusion: str = ""
    sync_every: int = 0

    def __post_init__(self) -> None:
        known = ("", "factorwise", "concatenated")
        require(self.fusion in known, f"fusion must be factorwise, concatenated or empty, got {self.fusion[:40]!r}")
        require(0 <= self.cohorts <= 64, f"cohorts must be 0 to 64, got {self.cohorts}")
        require(bool(self.cohort) == (self.cohorts > 0), "cohort and cohorts come together")
        require(all(0 < r < 2**20 for r in self.ranks), f"ranks must be above 0, got {self.ranks[:8]}")
        require(self.sync_every >= 0, f"sync_every must not be negative, got {self.sync_every}")


PLAIN = Sharing()


@dataclass(frozen=True, slots=True, kw_only=True)
class Task(Message):
    """GET /v1/task: what there is to join.

    `bundle` is the SHA-256 of the bundle's manifest, which names every other file by digest; `layout` the digest of the
    layout; `seed` gives version 0 of the adapter; `version` is the head; `state` is `running` or `done`.
    """

    protocol: int
    name: str
    model: str
    bundle: str
    layout: str
    seed: int
    rounds: int
    round: int
    version: int
    state: str
    upload_codec: Spec
    local: LocalConfig
    max_upload_bytes: int
    sharing: Sharing = PLAIN

    def __post_init__(self) -> None:
        check_name("the task's name", self.name)
        check_digest("bundle", self.bundle)
        check_digest("layout", self.layout)
        require(self.state in ("running", "done"), f"state must be 'running' or 'done', got {self.state[:40]!r}")
        require(0 <= self.seed < 2**63, f"seed must be in 0..2^63-1, got {self.seed}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello(Message):
    """GET /v1/hello, the one answer for anybody: a nonce for the first signed request, and how to come in.

    `enroll` is `code` (one from the operator is needed) or `open` (any device on the server's own machine may).
    """

    protocol: int
    enroll: str
    nonce: str

    def __post_init__(self) -> None:
        require(self.enroll in ("code", "open"), f"enroll must be 'code' or 'open', got {self.enroll[:40]!r}")
        require(0 < len(self.nonce) <= 64, "nonce must have 1 to 64 characters")


@dataclass(frozen=True, slots=True, kw_only=True)
class Enroll(Message):
    """POST /v1/enroll, signed with the key that asks. `client` is the name that the device would like to have.

    `code` is a one-time code, or empty for a key that is enrolled already and asks under which name.
    """

    client: str
    code: str

    def __post_init__(self) -> None:
        check_name("client", self.client)
        require(len(self.code) <= 64, "a code has at most 64 characters")


@dataclass(frozen=True, slots=True, kw_only=True)
class Enrolled(Message):
    """The answer: the name that belongs to this key from now on."""

    client: str

    def __post_init__(self) -> None:
        check_name("client", self.client)


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckIn(Message):
    """POST /v1/checkin: a device offers itself. `held` is the version that it has, -1 for none."""

    client: str
    layout: str
    held: int
    examples: int
    runtime: str

    def __post_init__(self) -> None:
        check_name("client", self.client)
        check_digest("layout", self.layout)
        check_name("runtime", self.runtime)
        require(self.held >= -1, f"held must be -1 or a version, got {self.held}")
        require(0 <= self.examples < 2**31, f"examples must be in 0..2^31-1, got {self.examples}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment(Message):
    """The answer to a check-in.

    `train`: take `version`, train, upload for `round` within `deadline_s` seconds. `wait`: ask again in
    `retry_after_s`. `done`: the task has ended, `version` is the last. `attempt` counts the times
    that this round was opened. `cohort` is the device's group, 0 where there are none.
    """

    action: str
    round: int
    attempt: int
    version: int
    deadline_s: float
    retry_after_s: float
    cohort: int = 0

    def __post_init__(self) -> None:
        require(
            self.action in ("train", "wait", "done"), f"action must be train, wait or done, got {self.action[:40]!r}"
        )
        require(0 <= self.cohort < 64, f"cohort must be 0 to 63, got {self.cohort}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Step(Message):
    """One published change: codec and its parts. The adapter is the one before it plus the decoded change."""

    version: int
    codec: Spec
    parts: dict[str, bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter(Message):
    """GET /v1/adapter/{version}?held=H: how to come from `base` to `version`.

    `base` is the version held (0 is the seeded start, which is never sent) or -1 for the zero vector. Add each step's
    decoded change to it, in order, in float32. `digest` is the SHA-256 of the resulting little-endian float32 bytes.
    """

    version: int
    base: int
    layout: str
    digest: str
    steps: tuple[Step, ...]

    def __post_init__(self) -> None:
        check_digest("layout", self.layout)
        check_digest("digest", self.digest)
        require(-1 <= self.base <= self.version, f"base {self.base} is not in -1..{self.version}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Update(Message):
    """PUT /v1/updates/{round}/{client}: the coded change of one device in one round.

    `version` is the adapter that the device started from. `examples` weighs the update where the strategy weighs.
    `loss_before` and `loss_after` are the mean local training losses of the first and the last steps, in nats.
    """

    client: str
    layout: str
    round: int
    attempt: int
    version: int
    codec: Spec
    parts: dict[str, bytes]
    examples: int
    steps: int
    loss_before: float
    loss_after: float
    seconds: float

    def __post_init__(self) -> None:
        check_name("client", self.client)
        check_digest("layout", self.layout)
        require(
            self.round >= 0 and self.version >= 0 and self.attempt >= 0,
            "round, attempt and version must not be negative",
        )
        require(0 < self.examples < 2**31, f"examples must be in 1..2^31-1, got {self.examples}")
        require(0 < len(self.codec) <= 16, f"codec has {len(self.codec)} stages, expected 1 to 16")


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt(Message):
    """The answer to an upload, sent only when the update is on disk. `status`: `accepted` or `duplicate`.

    `version` is the one that counts the update; `staleness` how many versions older than its predecessor the one was
    that the device trained from, always 0 in synchronous rounds.
    """

    status: str
    round: int
    digest: str
    payload_bytes: int
    version: int
    staleness: int

    def __post_init__(self) -> None:
        require(
            self.status in ("accepted", "duplicate"), f"status must be accepted or duplicate, got {self.status[:40]!r}"
        )
        check_digest("digest", self.digest)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation(Message):
    """PUT /v1/evaluations/{version}/{client}: held-out loss of one version on one device's own data.

    `kind` is `global`, the model that everybody gets, or `personal`, with what this device keeps to itself.
    """

    client: str
    layout: str
    version: int
    loss_sum: float
    tokens: int
    correct: int
    kind: str = "global"

    def __post_init__(self) -> None:
        check_name("client", self.client)
        check_digest("layout", self.layout)
        require(self.version >= 0, "version must not be negative")
        require(0 < self.tokens < 2**53, f"tokens must be in 1..2^53-1, got {self.tokens}")
        require(0 <= self.correct <= self.tokens, f"correct must be in 0..{self.tokens}, got {self.correct}")
        require(self.kind in ("global", "personal"), f"kind must be global or personal, got {self.kind[:40]!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Vault(Message):
    """PUT and GET /v1/vaults/{address}: what a device encrypted for itself; nothing in answers that carry none."""

    sealed: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal(Message):
    """The body of every 4xx and 5xx: a stable code for programs, one sentence for people.

    `retry_after_s` is -1 where trying again is useless.
    """

    code: str
    message: str
    retry_after_s: float

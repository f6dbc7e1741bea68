"""What travels instead of a vector: a chain of stages, ending in the packed format SPK1."""

from covey_shared.codec.chain import Codec, Parts, Stage, State, chain, error_feedback
from covey_shared.codec.stages import STAGES, codec_from_spec
from covey_shared.codec.state import dump_state, load_state
from covey_shared.codec.topk import topk

__all__ = [
    "STAGES",
    "Codec",
    "Parts",
    "Stage",
    "State",
    "chain",
    "codec_from_spec",
    "dump_state",
    "error_feedback",
    "load_state",
    "topk",
]

"""The families: one row each, of a tiny configuration. A new family is one line.

`FAMILIES` drives tests/export/test_families.py and benchmarks/families.py; `IN_THE_WAY` are architectures that cannot
be exported, with the sentence that says so.
"""

from typing import Any, NamedTuple

from covey_shared.manifest import TARGETS

SHAPE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
VOCABULARY = 80  # more than the words: some families' tokenizers add tokens of their own
SMALL = {"vocab_size": VOCABULARY, "max_position_embeddings": 64, "pad_token_id": 0}
GROUPED = {"num_key_value_heads": 2}
GPT2 = {"n_embd": 32, "n_layer": 1, "n_head": 4, "n_positions": 64, "vocab_size": VOCABULARY, "pad_token_id": 0,
        "bos_token_id": 2, "eos_token_id": 3}  # fmt: skip
VISION = {**SHAPE, "image_size": 16, "patch_size": 8}
STAGES = {"hidden_sizes": [8, 16], "depths": [1, 1]}
WINDOWS = {"image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4}
CAUSAL, CLASSIFIER, IMAGES = "causal-lm", "sequence-classification", "image-classification"


class Family(NamedTuple):
    """A row of the table: configuration class, model class, task, and the configuration.

    `quick`: the runtimes for which the ordinary suite exports it; the slow one does so for all. `recipe`: what its
    export needs beside the task. `built_in`: a network of ours in place of a folder.
    """

    config: str
    model: str
    task: str
    settings: dict[str, Any]
    quick: tuple[str, ...] = ()
    recipe: dict[str, Any] = {}  # noqa: RUF012  never written to
    built_in: str = ""


def _causal(name: str, **settings: Any) -> Family:
    return Family(f"{name}Config", f"{name}ForCausalLM", CAUSAL, {**SHAPE, **SMALL, **settings})


def _other(config: str, model: str, **settings: Any) -> Family:
    """A causal LM whose configuration has words of its own."""
    return Family(f"{config}Config", model, CAUSAL, {"vocab_size": VOCABULARY, "pad_token_id": 0, **settings})


def _classifier(name: str, **settings: Any) -> Family:
    return Family(
        f"{name}Config", f"{name}ForSequenceClassification", CLASSIFIER, {**SHAPE, **SMALL, "num_labels": 3, **settings}
    )


def _images(name: str, **settings: Any) -> Family:
    return Family(f"{name}Config", f"{name}ForImageClassification", IMAGES, {"num_labels": 3, **settings})


def _network(name: str, side: int) -> Family:
    return Family("", "", IMAGES, {}, recipe={"image": (3, side, side), "num_labels": 3}, built_in=f"covey:{name}")


def _sized(side: int, **more: Any) -> dict[str, Any]:
    return {"image": (3, side, side), **more}


FAMILIES: dict[str, Family] = {
    # causal language models
    "llama": _causal("Llama", **GROUPED),
    "llama-tied-with-biases": _causal("Llama", num_key_value_heads=1, tie_word_embeddings=True, attention_bias=True),
    "qwen2": _causal("Qwen2", **GROUPED)._replace(quick=("onnx", "torch")),
    "qwen3": _causal("Qwen3", **GROUPED, head_dim=8),
    "mistral": _causal("Mistral", **GROUPED, sliding_window=4),
    "gemma": _causal("Gemma", **GROUPED, head_dim=8),
    "gemma2": _causal("Gemma2", **GROUPED, head_dim=8, num_hidden_layers=2, sliding_window=4),
    "gemma3": _causal("Gemma3", **GROUPED, head_dim=8)._replace(config="Gemma3TextConfig"),
    "phi": _causal("Phi", **GROUPED),
    "phi3": _causal("Phi3", **GROUPED),
    "gpt2": Family("GPT2Config", "GPT2LMHeadModel", CAUSAL, GPT2),
    "gpt-bigcode": Family("GPTBigCodeConfig", "GPTBigCodeForCausalLM", CAUSAL, GPT2),
    "gptj": Family("GPTJConfig", "GPTJForCausalLM", CAUSAL, {**GPT2, "rotary_dim": 4}),
    "codegen": Family("CodeGenConfig", "CodeGenForCausalLM", CAUSAL, {**GPT2, "rotary_dim": 4}),
    "gpt-neo": _other("GPTNeo", "GPTNeoForCausalLM", hidden_size=32, num_layers=1, num_heads=4,
                      attention_types=[[["global"], 1]], max_position_embeddings=64, bos_token_id=2, eos_token_id=3),
    "gpt-neox": _causal("GPTNeoX"),
    "opt": _causal("OPT", ffn_dim=48, word_embed_proj_dim=32),
    "bloom": _other("Bloom", "BloomForCausalLM", hidden_size=32, n_layer=1, n_head=4),
    "mpt": _other("Mpt", "MptForCausalLM", d_model=32, n_heads=4, n_layers=1, max_seq_len=64),
    "xglm": _other("XGLM", "XGLMForCausalLM", d_model=32, ffn_dim=48, num_layers=1, attention_heads=4,
                   max_position_embeddings=64),
    "falcon": _causal("Falcon", new_decoder_architecture=False),
    "falcon-alibi": _causal("Falcon", alibi=True, multi_query=False),
    "stablelm": _causal("StableLm", **GROUPED),
    "olmo": _causal("Olmo", **GROUPED),
    "olmo2": _causal("Olmo2", **GROUPED),
    "granite": _causal("Granite", **GROUPED),
    "cohere": _causal("Cohere", **GROUPED),
    "starcoder2": _causal("Starcoder2", **GROUPED),
    "smollm3": _causal("SmolLM3", **GROUPED, no_rope_layers=[1]),
    "nemotron": _causal("Nemotron", **GROUPED, head_dim=8),
    "glm": _causal("Glm", **GROUPED, head_dim=8),
    "biogpt": _causal("BioGpt"),
    "ernie4.5": _causal("Ernie4_5", **GROUPED, head_dim=8),
    "exaone4": _causal("Exaone4", **GROUPED, head_dim=8, sliding_window=4),
    "lfm2": _causal("Lfm2", **GROUPED, layer_types=["conv"]),
    "helium": _causal("Helium", **GROUPED, head_dim=8),
    # text classifiers
    "bert": _classifier("Bert"),
    "roberta": _classifier("Roberta", pad_token_id=1),
    "xlm-roberta": _classifier("XLMRoberta", pad_token_id=1),
    "distilbert": _classifier("DistilBert", dim=32, hidden_dim=48, n_layers=1, n_heads=4)._replace(quick=("onnx",)),
    "camembert": _classifier("Camembert", pad_token_id=1),
    "electra": _classifier("Electra", embedding_size=16),
    "albert": _classifier("Albert", embedding_size=16),
    "mpnet": _classifier("MPNet", pad_token_id=1),
    "ernie": _classifier("Ernie"),
    "deberta": _classifier("Deberta", relative_attention=True, pos_att_type=["c2p", "p2c"]),
    "deberta-v2": _classifier("DebertaV2", relative_attention=True, pos_att_type=["c2p", "p2c"], position_buckets=8),
    "modernbert": _classifier("ModernBert", local_attention=4, global_attn_every_n_layers=2, num_hidden_layers=2),
    "convbert": _classifier("ConvBert", embedding_size=32, conv_kernel_size=3),
    "squeezebert": _classifier("SqueezeBert", embedding_size=32),
    "mobilebert": _classifier("MobileBert", embedding_size=16, true_hidden_size=16, intra_bottleneck_size=16),
    "roformer": _classifier("RoFormer", embedding_size=32),
    "xlnet": Family("XLNetConfig", "XLNetForSequenceClassification", CLASSIFIER,
                    {"d_model": 32, "n_layer": 1, "n_head": 4, "d_inner": 48, "vocab_size": VOCABULARY,
                     "num_labels": 3, "pad_token_id": 0}),
    "gpt2-classifier": Family("GPT2Config", "GPT2ForSequenceClassification", CLASSIFIER, {**GPT2, "num_labels": 3}),
    "llama-classifier": _classifier("Llama", **GROUPED),
    # image classifiers
    "vit": _images("ViT", **VISION),
    "deit": _images("DeiT", **VISION),
    "beit": _images("Beit", **VISION),
    "swin": _images("Swin", **WINDOWS),
    "swinv2": _images("Swinv2", **WINDOWS),
    "convnext": _images("ConvNext", **STAGES, num_stages=2, image_size=32),
    "convnextv2": _images("ConvNextV2", **STAGES, num_stages=2, image_size=32),
    "resnet": _images("ResNet", embedding_size=8, **STAGES, layer_type="basic")._replace(
        recipe=_sized(16, train_full=("norms",))
    ),
    "resnet-bottleneck": _images("ResNet", embedding_size=8, **STAGES)._replace(recipe=_sized(16)),
    "covey-resnet8": _network("resnet8", 8)._replace(quick=TARGETS),
    "covey-resnet18": _network("resnet18", 16),
}  # fmt: skip
# What cannot be exported: the configuration, and what the sentence names.
IN_THE_WAY: dict[str, tuple[Family, str]] = {
    "longformer": (
        _classifier("Longformer", attention_window=4), r"LongformerSelfAttention \(modeling_longformer\.py:\d+\)"
    ),
    "mixtral": (_causal("Mixtral", **GROUPED, num_local_experts=2), "its operator transformers.grouped_mm_fallback"),
    "fnet": (_classifier("FNet"), r"FNetForSequenceClassification .* complex numbers \(aten"),
    "t5": (
        Family("T5Config", "T5ForConditionalGeneration", CAUSAL,
               {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_heads": 4, "vocab_size": VOCABULARY}),
        r"is an encoder with a decoder \(t5\)",
    ),
    "mamba": (
        _other("Mamba", "MambaForCausalLM", hidden_size=32, num_hidden_layers=1, state_size=4),
        "'out_proj' is incompatible with Mamba-based models",
    ),
}  # fmt: skip

"""Bundles for the tests that need a real graph: a tiny random Llama and a tiny random BERT, exported once.

Lowering takes its time, so the bundles are kept in pytest's cache under a digest of what makes them.
"""

import contextlib
import hashlib
import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from covey_shared.bundle import Bundle

ROOT = Path(__file__).parent.parent.parent
NEEDED = ("torch", "transformers", "peft", "onnx", "onnxruntime")

MAKE = """
import sys
from pathlib import Path
import torch
from covey_export import bundle
from covey_export.quiet import quiet
from covey_export.recipe import Recipe
from covey_shared.manifest import Parity

out, targets = Path(sys.argv[1]), tuple(sys.argv[2].split(","))
# That a bundle is right and fast is for tests/export to prove; here proofs and XNNPACK would only cost a minute.
bundle.prove = lambda *_: Parity(loss_error=0.0, gradient_error=0.0, tolerance=1e-5, peak_bytes=0, step_seconds=0.0)
if "executorch" in targets:
    from covey_export.targets.executorch_partition import InOrder
    from executorch.exir.backend.partitioner import PartitionResult

    InOrder.partition = lambda self, program: PartitionResult(tagged_exported_program=program, partition_tags={})
with quiet():
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertForSequenceClassification, ByT5Tokenizer, LlamaConfig, LlamaForCausalLM
    from transformers import PreTrainedTokenizerFast
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    llama = LlamaConfig(vocab_size=259, num_key_value_heads=2, max_position_embeddings=64, pad_token_id=0,
                        eos_token_id=1, bos_token_id=None, **shape)
    LlamaForCausalLM(llama).save_pretrained(out / "llama")
    ByT5Tokenizer(extra_ids=0).save_pretrained(out / "llama")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "bad", "film", "a", "very"]
    library = Tokenizer(models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    library.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    bert = BertConfig(vocab_size=len(words), max_position_embeddings=32, num_labels=2, pad_token_id=0, **shape)
    BertForSequenceClassification(bert).save_pretrained(out / "bert")
    PreTrainedTokenizerFast(tokenizer_object=library, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
                            sep_token="[SEP]").save_pretrained(out / "bert")
    bundle.export(Recipe(model=str(out / "llama"), ranks=(1, 2), batch_size=4, seq_len=32, targets=targets),
                  out / "lm")
    bundle.export(Recipe(model=str(out / "llama"), ranks=(1, 2), batch_size=4, seq_len=32, targets=("onnx",),
                         frozen_rank=8), out / "second")
    bundle.export(Recipe(model=str(out / "bert"), task="sequence-classification", rank=2, batch_size=4, seq_len=8,
                         targets=("onnx",)), out / "classifier")
    bundle.export(Recipe(model="covey:resnet8", task="image-classification", labels=("dark", "light"), image=(3, 8, 8),
                         rank=1, target_modules=("all-conv",), batch_size=4, targets=("onnx",)), out / "pictures")
"""


@pytest.fixture(scope="session")
def bundles(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of this run with the bundles `lm` (for all runtimes that are installed), `classifier` and `pictures`."""
    absent = [m for m in NEEDED if importlib.util.find_spec(m) is None]
    if absent:
        pytest.skip(f"needs {', '.join(absent)} to export a bundle")
    targets = "onnx,torch" + (",executorch" if importlib.util.find_spec("executorch") else "")
    own = tmp_path_factory.mktemp("edge-bundles")
    cache = getattr(pytestconfig, "cache", None)
    kept = Path(cache.mkdir("covey-edge-bundles")) / made_from(targets) if cache else own / "kept"
    if not kept.is_dir():
        make(own / "made", targets)
        with contextlib.suppress(OSError):  # another run was faster
            shutil.copytree(own / "made", own / "copy")
            shutil.move(own / "copy", kept)
        return own / "made"
    shutil.copytree(kept, own / "made")
    return own / "made"


def make(folder: Path, targets: str) -> None:
    """Export them, in a process of their own."""
    folder.mkdir()
    command = [sys.executable, "-c", MAKE, str(folder), targets]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr[-3000:]


def made_from(targets: str) -> str:
    """A digest of the exporter's code, this script and the libraries' versions."""
    from importlib.metadata import version

    digest = hashlib.sha256((MAKE + targets + "".join(version(m) for m in NEEDED)).encode())
    for path in sorted([*(ROOT / "export" / "covey_export").rglob("*.py"), *(ROOT / "shared").rglob("*.py")]):
        if "demo" not in path.parts:
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


@pytest.fixture(scope="session")
def lm(bundles: Path) -> Bundle:
    """A causal LM over bytes: batch 4, 32 tokens, ranks 1 and 2."""
    return Bundle.open(bundles / "lm")


@pytest.fixture(scope="session")
def second(bundles: Path) -> Bundle:
    """The same as `lm`, for ONNX, with a second adapter of rank 8."""
    return Bundle.open(bundles / "second")


@pytest.fixture(scope="session")
def classifier(bundles: Path) -> Bundle:
    """A classifier of two classes over words: batch 4, 8 tokens."""
    return Bundle.open(bundles / "classifier")


@pytest.fixture(scope="session")
def pictures(bundles: Path) -> Bundle:
    """A classifier of two classes over images of 3 x 8 x 8: batch 4."""
    return Bundle.open(bundles / "pictures")

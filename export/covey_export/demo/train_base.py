"""Train the demo's base model: a byte-level Llama of about 1.2 million parameters, on the public half of the corpus.

    python -m covey_export.demo.train_base --minutes 40 --out export/covey_export/demo/byte-llama-1.3m

The tokenizer is ByT5's convention (Xue et al. 2022, arXiv 2105.13626): token = byte + 3, with 0 for padding, 1 for the
end and 2 for unknown, so a phone needs no tokenizer library. The weights are rounded to float16 before they are
written, which keeps the file under 3 MB. The schedule's length is wall-clock
time: the model is as good as the minutes.
"""

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM

from covey_export.demo.corpus import public_texts

BYTE_OFFSET = 3
VOCABULARY = 256 + BYTE_OFFSET
CONFIG: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 160, "intermediate_size": 432, "num_hidden_layers": 4,
    "num_attention_heads": 5, "num_key_value_heads": 5, "max_position_embeddings": 512, "tie_word_embeddings": True,
    "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None, "rms_norm_eps": 1e-5, "attention_dropout": 0.0,
}  # fmt: skip


def tokens_of(texts: list[str]) -> np.ndarray:
    """All texts as one stream of uint16 tokens, each text closed by the end token."""
    stream = b"".join(text.encode() + b"\x00" for text in texts)
    tokens = np.frombuffer(stream, np.uint8).astype(np.int64) + BYTE_OFFSET
    tokens[tokens == BYTE_OFFSET] = 1  # a zero byte marks the end of a file
    return tokens


def batches(tokens: np.ndarray, batch: int, length: int, seed: int) -> Any:
    """Endless random windows, int64 [batch, length]."""
    rng = np.random.default_rng(seed)
    while True:
        starts = rng.integers(0, len(tokens) - length, batch)
        yield torch.from_numpy(np.stack([tokens[s : s + length] for s in starts]))


@torch.no_grad()
def evaluate(model: LlamaForCausalLM, tokens: np.ndarray, length: int) -> float:
    """Mean loss in nats per byte on fixed windows."""
    starts = np.linspace(0, len(tokens) - length - 1, 64).astype(int)
    ids = torch.from_numpy(np.stack([tokens[s : s + length] for s in starts]))
    return float(model(input_ids=ids, labels=ids).loss)


def train(minutes: float, out: Path, batch: int, length: int, lr: float, seed: int) -> None:
    """Train for `minutes` of wall-clock time and write a Hugging Face folder to `out`."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**CONFIG))
    texts = public_texts()
    held = tokens_of(texts[::20])
    tokens = tokens_of([t for i, t in enumerate(texts) if i % 20])
    decay = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98))
    start, budget = time.monotonic(), minutes * 60
    stream = batches(tokens, batch, length, seed)
    bar = tqdm(total=round(budget), unit="s", desc=f"{sum(p.numel() for p in model.parameters()):,} parameters")
    step, loss = 0, math.nan
    while (spent := time.monotonic() - start) < budget:
        share = spent / budget
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / 100) * (1 - share * 0.98)
        ids = next(stream)
        value = model(input_ids=ids, labels=ids).loss
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss = value.item() if math.isnan(loss) else 0.95 * loss + 0.05 * value.item()
        step += 1
        bar.n = round(spent)
        bar.set_postfix(step=step, loss=f"{loss:.3f}")
        if step % 200 == 0:
            bar.write(f"step {step} loss {loss:.3f} held-out {evaluate(model, held, length):.3f}")
    bar.close()
    model.half()
    out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out)
    (out / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "ByT5Tokenizer",
                "extra_ids": 0,
                "pad_token": "<pad>",
                "eos_token": "</s>",
                "unk_token": "<unk>",
            },
            indent=2,
        )
        + "\n"
    )
    final = evaluate(model.float(), held, length)
    print(f"{step} steps of {batch}x{length} bytes; held-out loss {final:.4f} nats/byte; wrote {out}")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=40.0, help="wall-clock minutes to train (default 40)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "byte-llama-1.3m", help="folder to write")
    parser.add_argument("--batch", type=int, default=16, help="windows a step (default 16)")
    parser.add_argument("--seq-len", type=int, default=256, help="bytes a window (default 256)")
    parser.add_argument("--lr", type=float, default=3e-3, help="peak learning rate of AdamW (default 0.003)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights and the windows (default 0)")
    args = parser.parse_args()
    train(args.minutes, args.out, args.batch, args.seq_len, args.lr, args.seed)


if __name__ == "__main__":
    main()

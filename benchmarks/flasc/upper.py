"""The frozen part of an encoder, run once: its outputs become the word embeddings of a model of the upper blocks alone.

Where LoRA is on the upper blocks only, the lower ones give the same for a text in every step of every run. A text's
tokens get numbers of their own, and the embedding of such a number is what the lower blocks make of that token in that
text. The upper model is an ordinary Hugging Face folder, exported and trained as any other; its output is the whole
model's. The last thing a block does is a layer norm, so what is stored is what comes before its scale and offset, which
the upper model's embedding norm then applies.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

PAD = 0  # the number of padding; its embedding does not matter


def numbered(lengths: NDArray[np.int32], width: int, first: int) -> NDArray[np.int32]:
    """Numbers for the tokens of N texts, int32 [N, width], counted from `first`; padding is PAD."""
    real = np.arange(width) < lengths[:, None]
    ids = np.full(real.shape, PAD, np.int32)
    ids[real] = np.arange(first, first + int(lengths.sum()), dtype=np.int32)
    return ids


def upper_model(model: str, blocks: int, texts: list[tuple[Any, Any]], classes: int, folder: Path) -> None:
    """Write the model of the last `blocks` blocks; its tokens are those of `texts`, pairs (ids [N, T], lengths [N])."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertForSequenceClassification

    torch.manual_seed(0)
    whole: Any = AutoModelForSequenceClassification.from_pretrained(model, num_labels=classes).eval()
    encoder, config = whole.bert.encoder.layer, whole.config
    lower = len(encoder) - blocks
    norm = encoder[lower - 1].output.LayerNorm
    whole.bert.encoder.layer = encoder[:lower]
    table = [torch.zeros(1, config.hidden_size)]
    with torch.inference_mode():
        for ids, lengths in texts:
            table += [_before_norm(whole.bert, norm, i, n) for i, n in _batches(ids, lengths)]
    rows = torch.cat(table)
    config.num_hidden_layers, config.vocab_size, config.pad_token_id = blocks, len(rows), PAD
    upper = BertForSequenceClassification(config).eval()
    upper.bert.encoder.layer.load_state_dict(encoder[lower:].state_dict())
    if upper.bert.pooler is not None:
        upper.bert.pooler.load_state_dict(whole.bert.pooler.state_dict())
    upper.classifier.load_state_dict(whole.classifier.state_dict())
    embeddings = upper.bert.embeddings
    with torch.no_grad():
        embeddings.word_embeddings.weight.copy_(rows)
        embeddings.position_embeddings.weight.zero_()
        embeddings.token_type_embeddings.weight.zero_()
        embeddings.LayerNorm.load_state_dict(norm.state_dict())
    upper.save_pretrained(folder)
    AutoTokenizer.from_pretrained(model).save_pretrained(folder)


def _batches(ids: Any, lengths: Any) -> list[tuple[Any, Any]]:
    return [(ids[i : i + 64], lengths[i : i + 64]) for i in range(0, len(ids), 64)]


def _before_norm(bert: Any, norm: Any, ids: Any, lengths: Any) -> Any:
    """Of the real tokens of a batch, what the lower blocks' last norm has before its scale: [sum of lengths, H]."""
    import torch

    width = int(lengths.max())
    real = torch.arange(width) < torch.as_tensor(lengths)[:, None]
    hidden = bert(torch.as_tensor(ids[:, :width]).long(), attention_mask=real.long()).last_hidden_state[real]
    return (hidden - norm.bias) / norm.weight

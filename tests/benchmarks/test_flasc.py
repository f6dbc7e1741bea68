"""The parts of benchmarks/flasc that its numbers hang on: how data are dealt, masks, what counts as equal."""

from pathlib import Path

import evidence
import numpy as np
import pytest
from federation import Mask, Method, pruned, shares
from hypothesis import given
from hypothesis import strategies as st
from run import TUNING_SEED, Ledger, config_of, key_of, methods
from tasks import TASKS, dirichlet
from upper import PAD, numbered, upper_model

from covey_shared.layout import Layout, Tensor

LAYOUT = Layout(
    (
        Tensor(name="q.lora_A", shape=(2, 10), kind="lora_A", init="kaiming_uniform"),
        Tensor(name="q.lora_B", shape=(10, 2), kind="lora_B", init="zeros"),
    )
)


@given(st.integers(2, 8), st.integers(1, 60), st.integers(0, 9))
def test_dealing_hands_out_each_example_at_most_once(classes: int, clients: int, seed: int) -> None:
    labels = np.random.default_rng(seed).integers(0, classes, 300)
    labels[:classes] = np.arange(classes)
    dealt = dirichlet(labels, clients, 0.1, seed)
    every = np.concatenate(dealt)
    assert len(np.unique(every)) == len(every)
    assert all(len(mine) for mine in dealt)
    assert len(every) >= 300 - clients * classes, "only what rounding leaves over stays undealt"


def test_each_real_token_has_a_number_of_its_own() -> None:
    ids = numbered(np.array([2, 0, 3], np.int32), 4, 5)
    assert ids.tolist() == [[5, 6, PAD, PAD], [PAD] * 4, [7, 8, 9, PAD]]


def test_the_upper_blocks_on_kept_outputs_are_the_whole_model(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizer

    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32, num_labels=3
    )
    whole = BertForSequenceClassification(config).eval()
    with torch.no_grad():  # a trained norm has scales and offsets
        whole.bert.encoder.layer[0].output.LayerNorm.weight.uniform_(0.5, 2)
        whole.bert.encoder.layer[0].output.LayerNorm.bias.normal_()
    whole.save_pretrained(tmp_path / "whole")
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh"]))
    BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path / "whole")
    lengths = np.array([5, 3], np.int32)
    ids = np.array([[2, 7, 8, 9, 3], [2, 11, 3, 0, 0]], np.int32)
    upper_model(str(tmp_path / "whole"), 2, [(ids, lengths)], 3, tmp_path / "upper")
    upper = BertForSequenceClassification.from_pretrained(tmp_path / "upper").eval()
    assert upper.config.num_hidden_layers == 2
    real = torch.as_tensor(np.arange(5) < lengths[:, None]).long()
    with torch.inference_mode():
        expected = whole(torch.as_tensor(ids).long(), attention_mask=real).logits
        found = upper(torch.as_tensor(numbered(lengths, 5, 1)).long(), attention_mask=real).logits
    assert torch.allclose(found, expected, atol=1e-5)


def test_masks_follow_their_schedules() -> None:
    assert [Mask("fixed", 0.25, False).at(r) for r in (1, 2, 9)] == [1.0, 0.25, 0.25]
    assert [Mask("fresh", 0.25, False).at(r) for r in (1, 9)] == [0.25, 0.25]
    assert [Mask("fresh", 0.25, True).at(r) for r in (1, 9)] == [1.0, 0.25], "at first nothing has moved"
    assert [round(Mask("shrinking", 0.25, False, 0.5).at(r), 3) for r in (1, 2, 3, 4)] == [1.0, 0.5, 0.25, 0.25]


def test_the_papers_score_keeps_random_a_and_the_fair_one_what_moved() -> None:
    start = np.zeros(40, np.float32)
    start[:20] = np.linspace(1, 2, 20)
    w = start.copy()
    w[20:30] += 0.5
    everything = np.arange(40)
    for base, expected in ((np.zeros(40, np.float32), range(10, 20)), (start, range(20, 30))):
        view, where, size = pruned(w, base, 0.25, everything, LAYOUT, 1)
        assert where.tolist() == list(expected)
        assert np.array_equal(view[where], w[where])
        assert size > 4 * len(where)


def test_a_quota_leaves_no_tensor_out() -> None:
    change = np.concatenate([np.linspace(1, 2, 20), np.linspace(0, 0.1, 20)]).astype(np.float32)
    kept = shares(change, LAYOUT, 0.25)
    assert kept.tolist() == [*range(15, 20), *range(35, 40)]
    start = np.zeros(40, np.float32)
    _, where, _ = pruned(change, start, 0.9, kept, LAYOUT, 2)
    assert where.tolist() == kept.tolist(), "the density bounds it, the quota chooses"


def _summary(method: str, accuracy: float, spread: float | None, seeds: int) -> evidence.Summary:
    named = Method(name=method, title=method, family="covey", rank=1, task="")
    return evidence.Summary(named, seeds, (1.0, 1.0), 1.0, accuracy, spread, None, accuracy, 1.0, 1.0, 1, None, "")


def test_equal_is_within_one_standard_error_of_dense_lora() -> None:
    dense = _summary("dense-r16", 0.80, 0.03, 3)
    assert evidence.equal(_summary("a", 0.7830, 0.03, 3), dense), "0.017 below, the error is 0.0173"
    assert not evidence.equal(_summary("a", 0.7820, 0.03, 3), dense)
    assert not evidence.equal(_summary("a", 0.7820, 0.20, 3), dense), "a spread of its own does not help"
    assert evidence.equal(_summary("a", 0.9, 0.0, 3), dense)


def test_every_method_is_a_task_file_that_the_server_takes() -> None:
    from covey_server import task_file

    known = methods()
    assert "dense-r16" in known
    for method in known.values():
        assert not method.like or (method.like in known and not method.rates)
        for task in TASKS.values():
            task_file.parse('[task]\nbundle = ""\n' + (method.optimizers or task.optimizers) + method.task)


def _tried(ledger: Ledger, rates: tuple[float, float], loss: float) -> None:
    method = ledger.methods["dense-r16"]
    line = {"task": "sst2", "method": "dense-r16", "config": config_of(TASKS["sst2"], method), "rates": list(rates)}
    ledger.add({**line, "seed": TUNING_SEED, "tuning": True, "failed": "", "points": [[1, loss, 0.5, 1, 1]]})


def test_tuning_goes_on_while_the_best_rate_is_at_an_end(tmp_path: Path) -> None:
    known = methods()
    method, ledger, ladder = known["dense-r16"], Ledger(tmp_path, known), TASKS["sst2"].rates
    assert list(ledger.tried("sst2", method)) == list(ladder[1:4])
    for rates, loss in zip(ladder[1:4], (0.7, 0.6, 0.5), strict=True):
        assert ledger.best("sst2", method) is None, "not all were tried"
        _tried(ledger, rates, loss)
    assert [rates for rates, line in ledger.tried("sst2", method).items() if line is None] == [ladder[4]]
    _tried(ledger, ladder[4], float("nan"))
    again = Ledger(tmp_path, known)
    assert again.best("sst2", method) == ladder[3], "what diverged comes last"
    assert {key_of(line) for line in again.lines.values()} == set(again.lines)


def test_a_line_of_a_changed_method_is_not_taken(tmp_path: Path) -> None:
    known = methods()
    _tried(Ledger(tmp_path, known), TASKS["sst2"].rates[0], 0.5)
    changed = {**known, "dense-r16": known["dense-r16"]._replace(task=known["covey-r2"].task)}
    assert Ledger(tmp_path, known).lines
    assert not Ledger(tmp_path, changed).lines

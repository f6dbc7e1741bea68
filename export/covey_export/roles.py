"""The three graphs of a bundle: their inputs and outputs by name, in order. docs/export.md gives the shapes."""

ROLES = {
    "train": (("adapter", "input_ids", "labels"), ("loss", "grad")),
    "eval": (("adapter", "input_ids", "labels"), ("loss_sum", "n_tokens", "n_correct")),
    "forward": (("adapter", "input_ids"), ("logits",)),
}

"""The examples in the docstrings run."""

import doctest
from importlib import import_module

import pytest

MODULES = ("bundles", "data", "events", "optim", "texts", "tokens", "transport")


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    failed, tried = doctest.testmod(import_module(f"covey_edge.{name}"))
    assert tried > 0
    assert failed == 0

"""Bundles that several tests look at, each exported once."""

from pathlib import Path

import pytest

from covey_shared.bundle import Bundle
from tests.helpers_export import export_tiny, save_model


@pytest.fixture(scope="session")
def llama_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model("llama", tmp_path_factory.mktemp("llama") / "model")


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A causal LM for all three runtimes."""
    return export_tiny("llama", tmp_path_factory.mktemp("llama"), targets=("onnx", "executorch", "torch"))


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A classifier with a head of its own, for ONNX Runtime."""
    return export_tiny("bert", tmp_path_factory.mktemp("bert"))

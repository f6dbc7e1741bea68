"""The golden files of what a device computes by itself; the Kotlin client reads them as well."""

from typing import Any

import pytest

from covey_edge import vault
from covey_shared.errors import RemoteError
from tests.helpers_shared import vectors
from tests.vectors import make_edge

VAULTS = vectors("vault.json")


@pytest.mark.parametrize("name", ["fusion.json", "rows.json"])
def test_golden_files_come_out_the_same(name: str) -> None:
    assert make_edge.build()[name] == vectors(name)


@pytest.mark.parametrize("case", VAULTS["cases"], ids=lambda c: c["client"])
def test_golden_vaults_open(case: dict[str, Any]) -> None:
    words, task, client = case["passphrase"], case["task"], case["client"]
    kept = vault.open_vault(bytes.fromhex(case["sealed"]), words, task, client)
    assert (kept.content.hex(), kept.sequence) == (case["content"], case["sequence"])
    assert vault.address(words, task, client) == case["address"]


@pytest.mark.parametrize("case", VAULTS["bad"], ids=lambda c: c["name"])
def test_golden_vaults_that_were_changed_do_not(case: dict[str, Any]) -> None:
    with pytest.raises(RemoteError) as error:
        vault.open_vault(bytes.fromhex(case["sealed"]), case["passphrase"], case["task"], case["client"])
    assert str(error.value) == case["error"]

"""Vaults: what devices encrypted for themselves, kept as files that this server can store and delete but not read.

A vault's address is 64 hex digits that only someone with its passphrase can compute, so a new phone finds the vault of
the old one without anybody telling. A device has one vault; a new one takes the place of the old. Deleting unlinks the
file, at once.
"""

import asyncio
from pathlib import Path

from aiohttp import web

from covey_server import vaults
from covey_server.bodies import read_body
from covey_server.guard import CALLER
from covey_server.handlers import AGGREGATOR, RECEIVED, packed
from covey_server.limits import Rate
from covey_server.policy import DEVICE, SAFE, SAME, Policy, Route
from covey_server.refusals import Refused
from covey_server.run import Run
from covey_shared.messages import Vault
from covey_shared.schema import check_digest

LARGEST = 64 * 2**20  # bytes of any vault: 14 million personal entries
AROUND = 4096  # bytes that encryption and the message add, beside padding by an eighth


async def put_vault(request: web.Request) -> web.Response:
    """Keep a vault, in the place of the one that this device had."""
    run, address = request.app[AGGREGATOR].run, address_of(request)
    limit = limit_of(run)
    if not limit:
        raise Refused("not_found", "nothing of this task's adapter is personal, so there is nothing to keep")
    body = await read_body(request, limit)
    request[RECEIVED] = len(body)
    sealed = Vault.from_bytes(body).sealed
    await asyncio.to_thread(vaults.keep, folder_of(run), request[CALLER].name, address, sealed)
    return packed(Vault(sealed=b""))


async def get_vault(request: web.Request) -> web.Response:
    """A vault's bytes."""
    found = vaults.find(folder_of(request.app[AGGREGATOR].run), address_of(request))
    if not found:
        raise Refused("not_found", "there is no vault with this passphrase for this name and task")
    return packed(Vault(sealed=await asyncio.to_thread(found[0].read_bytes)))


async def delete_vault(request: web.Request) -> web.Response:
    """Delete a vault, or find that there is none."""
    await asyncio.to_thread(vaults.delete, folder_of(request.app[AGGREGATOR].run), address_of(request))
    return packed(Vault(sealed=b""))


def limit_of(run: Run) -> int:
    """The longest body of a vault: what is personal as float32, padded and wrapped; 0 where nothing is."""
    division = run.divided.division
    personal = division.personal()
    own = division.adapter.size if division.sharing.fusion else personal.size if personal else 0
    return min(LARGEST, 4 * own * 9 // 8 + AROUND) if own else 0


def folder_of(run: Run) -> Path:
    """Where a run's vaults lie."""
    return run.blobs.folder.parent / vaults.FOLDER


def address_of(request: web.Request) -> str:
    """The vault's address, checked, so that it can be part of a file's name."""
    address = request.match_info["address"]
    check_digest("the vault's address", address)
    return address


OFTEN = Rate(1.0, 20)
ROUTES = (
    Route("PUT", "/v1/vaults/{address}", "vault", put_vault, Policy(DEVICE, LARGEST, OFTEN, SAME)),
    Route("GET", "/v1/vaults/{address}", "vault", get_vault, Policy(DEVICE, 0, OFTEN, SAFE)),
    Route("DELETE", "/v1/vaults/{address}", "vault", delete_vault, Policy(DEVICE, 0, OFTEN, SAME)),
)

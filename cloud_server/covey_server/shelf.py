"""The adapters that devices can take, put together from the run's blobs and kept while memory allows."""

import asyncio
from collections.abc import Sequence

from covey_server import downloads, recipe, sections
from covey_server.recipe import ServerState
from covey_server.refusals import Refused
from covey_server.regroup import cohort_of
from covey_server.run import Run
from covey_server.store import VersionRow
from covey_shared.messages import Step


class Shelf:
    """A run's versions on their way to devices."""

    def __init__(self, run: Run):
        self._run = run
        self.cache = downloads.Cache(limit=max(2**26, 16 * run.layout.size))

    async def adapter(
        self, server: ServerState, versions: Sequence[VersionRow], version: int, held: int, cohort: int | None,
        client: str,
    ) -> bytes:  # fmt: skip
        """The bytes of the Adapter message that leads a device from `held` to `version`, of what all have or of the
        copies of its `cohort`. `server` is the head's state and `versions` are all up to it. Raises Refused.
        """
        if not 0 <= version < len(versions):
            raise Refused("wrong_version", f"version {version} does not exist, the head is {len(versions) - 1}")
        number = self._section(server, cohort, client)
        every = self._run.recipe.sections
        section = every[number]
        rows = versions if len(every) == 1 else [sections.row_of(row, number) for row in versions]
        chosen = downloads.plan(rows, held, version, 4 * section.layout.size)._replace(section=number)

        def make() -> bytes:
            whole = recipe.whole(server.view[section.where], version, section.exact) if chosen.whole else None
            plan = chosen if whole or not chosen.whole else downloads.plan(rows, held, version, 2**62)
            steps = [whole] if whole else [self._step(versions[v], number) for v in plan.steps]
            return downloads.message(plan, rows, section.layout.digest, steps)

        return await self.cache.get(chosen, lambda: asyncio.to_thread(make))

    def _section(self, server: ServerState, cohort: int | None, client: str) -> int:
        """The section that a device asks for. A cohort must be its own; it may have changed since it checked in."""
        grouping, common = self._run.grouping, self._run.divided.division.common
        if cohort is None and common:
            return 0
        if grouping is None or cohort is None:
            have = "no cohorts" if grouping is None else "nothing that all cohorts have"
            raise Refused("bad_message", f"this task has {have}, so there is no such adapter")
        own = cohort_of(grouping, server.cohorts, client)
        if cohort != own:
            raise Refused("conflict", f"cohort {cohort} is not that of {client}, which is {own} now; check in again")
        return cohort + (1 if common else 0)

    def _step(self, row: VersionRow, section: int) -> Step:
        """A section of a published step, from its blob."""
        assert row.step is not None
        step = Step.from_bytes(self._run.blobs.get(row.step))
        return step if len(self._run.recipe.sections) == 1 else sections.step_of(step, section)

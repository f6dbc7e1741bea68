"""A version in sections, each coded for itself, so that a device downloads those that it needs and no others.

Where a task has cohorts there is one section for what all devices have and one for each cohort's copies. The server
knows one vector of all of them, with one codec whose parts are the sections' parts, `0.packed`, `1.packed` and so on;
a device gets a section as if it were a small adapter of its own, with its own layout, steps and digest.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from covey_server.store import VersionRow
from covey_shared.codec import Codec, codec_from_spec, presets
from covey_shared.codec.chain import Parts, State
from covey_shared.entries import Entries
from covey_shared.layout import Layout, Vector, vector_digest
from covey_shared.messages import Step
from covey_shared.sharing import Division


class Section(NamedTuple):
    """A section: its layout, where its entries stand in what is published (int64 [k]), its codec, and an exact one."""

    layout: Layout
    where: NDArray[np.int64]
    codec: Codec
    exact: Codec


def sections_of(division: Division, codec: Callable[[Layout], Codec]) -> tuple[Section, ...]:
    """What all devices download, then the cohorts' copies; one section where there are no cohorts."""
    copies = (division.copy(cohort) for cohort in range(division.sharing.cohorts))
    layouts = (*((division.common,) if division.common else ()), *copies)
    return tuple(
        Section(layout, division.published.positions(layout), codec(layout), codec_from_spec(presets.dense(), layout))
        for layout in layouts
    )


def joined(sections: Sequence[Section]) -> Codec:
    """One codec for all sections; of a single one it is that one's own."""
    if len(sections) == 1:
        return sections[0].codec
    codecs = [section.codec for section in sections]
    size = sum(codec.size for codec in codecs)

    def encode(vector: Vector, state: State) -> tuple[Parts, State]:
        parts: Parts = {}
        after = []
        for i, (section, known) in enumerate(zip(sections, state, strict=True)):
            mine, new = section.codec.encode(vector[section.where], known)
            parts |= {f"{i}.{name}": part for name, part in mine.items()}
            after.append(new)
        return parts, after

    def decode(parts: Mapping[str, bytes]) -> Entries:
        found = [section.codec.decode(_of(parts, i)) for i, section in enumerate(sections)]
        where = [section.where[entries.where] for section, entries in zip(sections, found, strict=True)]
        return Entries(size, np.concatenate(where), np.concatenate([entries.values for entries in found]))

    return Codec(
        spec=codecs[0].spec,
        size=size,
        max_entries=sum(codec.max_entries for codec in codecs),
        max_bytes=sum(codec.max_bytes for codec in codecs),
        init=lambda seed: [codec.init(seed) for codec in codecs],
        encode=encode,
        decode=decode,
    )


def step_of(step: Step, section: int) -> Step:
    """A section's part of a step."""
    return Step(version=step.version, codec=step.codec, parts=_of(step.parts, section))


def facts(sections: Sequence[Section], view: Vector, step: Step | None) -> str:
    """Of each section of a version the bytes of its step and the digest of its vector, as it is stored."""
    if len(sections) <= 1:
        return ""
    parts = [_of(step.parts, i) if step else {} for i in range(len(sections))]
    sizes = [sum(map(len, mine.values())) for mine in parts]
    return json.dumps([[n, vector_digest(view[s.where])] for n, s in zip(sizes, sections, strict=True)])


@lru_cache(maxsize=2**14)
def row_of(row: VersionRow, section: int) -> VersionRow:
    """A version's row as that of one section."""
    if not row.sections:
        return row
    size, digest = json.loads(row.sections)[section]
    return row._replace(step_bytes=size, digest=digest)


def _of(parts: Mapping[str, bytes], section: int) -> Parts:
    prefix = f"{section}."
    return {name[len(prefix) :]: part for name, part in parts.items() if name.startswith(prefix)}

"""Reading a bundle's folder: every byte is checked against the manifest before it is used."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from covey_shared.errors import BundleError
from covey_shared.layout import Vector
from covey_shared.manifest import Manifest

MANIFEST = "manifest.json"
CHUNK = 1 << 20


def file_digest(path: Path) -> str:
    """SHA-256 of a file, read in pieces."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk: folder, manifest, and the SHA-256 of the manifest's bytes, which is the bundle's name."""

    folder: Path
    manifest: Manifest
    digest: str

    @classmethod
    def open(cls, folder: Path, *, target: str | None = None, verify: bool = True) -> "Bundle":
        """Read the manifest and check the files: all of them, or those that one runtime needs."""
        path = folder / MANIFEST
        if not path.is_file():
            raise BundleError(
                f"{folder} is not a bundle: it has no {MANIFEST}; make one with: covey export MODEL --out {folder}"
            )
        data = path.read_bytes()
        bundle = cls(folder, Manifest.from_bytes(data), hashlib.sha256(data).hexdigest())
        if verify:
            bundle.verify(target)
        return bundle

    def verify(self, target: str | None = None) -> None:
        """Refuses a missing, a resized and a changed file, and one that is used but has no digest."""
        manifest = self.manifest
        files = manifest.files_for(target) if target else manifest.files
        for unnamed in manifest.unnamed(target):
            raise BundleError(f"the manifest of {self.folder} needs {unnamed} but has no digest of it; export it again")
        for name, file in files.items():
            path = self.folder / name
            if not path.is_file():
                raise BundleError(f"the bundle {self.folder} lacks the file {name}; export or download it again")
            if path.stat().st_size != file.bytes or file_digest(path) != file.sha256:
                raise BundleError(
                    f"{name} in the bundle {self.folder} has another digest than the manifest states; "
                    "export or download it again"
                )

    def path(self, target: str, role: str) -> Path:
        """The file or folder of one role, `train` or `model` say, for a target."""
        self.manifest.files_for(target)
        return self.folder / self.manifest.graphs[target][role]

    def start(self, seed: int, rank: int = 0) -> Vector:
        """The adapter at version 0 for this seed, float32 [n]; with `rank`, that of `layout.at_rank(rank)`.

        A lower rank starts as the part of the full start that it has, so devices of all ranks start from one model.
        """
        stored = None
        if self.manifest.start:
            stored = np.fromfile(self.folder / self.manifest.start, "<f4").astype(np.float32)
        layout = self.manifest.layout
        full = layout.start(seed, stored)
        lower = rank not in (0, self.manifest.rank)
        return full[layout.positions(layout.at_rank(rank))] if lower else full

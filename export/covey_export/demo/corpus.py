"""The Python standard library as a federated corpus: public modules and private packages.

Every machine that runs Covey has this text, it is real, and it is naturally non-IID: `email` does not read like
`asyncio`. The single-file modules (and the topics of `pydoc`) are the **public half**, on which the demo's base model
was trained; each **package** is the private data of one device and was never shown to the base model.
"""

import sysconfig
from pathlib import Path

# In this order, so that `--clients 8` takes the first eight. Each is in every CPython >= 3.11, also where a
# distribution splits off tkinter, idlelib, test or lib2to3, and each has at least 30 kB of source.
DEVICE_PACKAGES = (
    "asyncio", "email", "unittest", "json", "multiprocessing", "http", "xml", "importlib",
    "ctypes", "logging", "urllib", "concurrent", "collections", "html", "re", "wsgiref",
)  # fmt: skip
MAX_FILE_BYTES = 400_000


def stdlib_root() -> Path:
    """The folder of the running interpreter's standard library."""
    return Path(sysconfig.get_path("stdlib"))


def _read(path: Path) -> str:
    """The file's text with what is not UTF-8 replaced, or nothing where it is too large or unreadable."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            return ""
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def public_texts(root: Path | None = None) -> list[str]:
    """The public half: single-file modules, and the language reference that `pydoc` carries; sorted by file name."""
    root = root or stdlib_root()
    paths = sorted(root.glob("*.py"))
    topics = root / "pydoc_data" / "topics.py"
    texts = [_read(path) for path in paths]
    if topics.exists():
        texts.append(topics.read_text(encoding="utf-8", errors="replace"))
    return [text for text in texts if text]


def device_texts(package: str, root: Path | None = None) -> dict[str, str]:
    """One device's private text: each `.py` file of a package, by its path below the standard library."""
    root = root or stdlib_root()
    found = {
        str(path.relative_to(root)): _read(path)
        for path in sorted((root / package).rglob("*.py"))
        if "test" not in path.parts and "tests" not in path.parts
    }
    return {name: text for name, text in found.items() if text.strip()}


def write_device(package: str, folder: Path, max_bytes: int) -> int:
    """Copy one package's text below `folder`, whole files while they fit in `max_bytes`; returns the bytes written.

    Files are taken in order of their path. The first one that does not fit whole is cut at the end of a line, so every
    device has text however large its files are.
    """
    written = 0
    for name, text in device_texts(package).items():
        data = text.encode()
        if written + len(data) > max_bytes:
            cut = data[: max_bytes - written]
            data = cut[: cut.rfind(b"\n") + 1]
        if data:
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
            written += len(data)
        if written >= max_bytes - 80:
            break
    return written

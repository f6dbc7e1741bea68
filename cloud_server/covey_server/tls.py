"""TLS with certificates from files, which may be replaced while the server runs.

A new pair is tried on a context of its own first: a certificate whose key has not been replaced yet, as happens while
both files are being written, must not break the context that answers. Connections that are open keep what they have.
"""

import asyncio
import logging
import ssl
from pathlib import Path

from covey_shared.errors import UsageError

log = logging.getLogger("covey.server")

POLL_S = 2.0


class Tls:
    """A server's context and the files that it came from."""

    def __init__(self, cert: Path, key: Path):
        self._files = (cert, key)
        self._seen = self._stamp()
        self.context = self._load()

    async def watch(self) -> None:
        """Take up new files when they change, until cancelled."""
        while True:
            await asyncio.sleep(POLL_S)
            await asyncio.to_thread(self.refresh)

    def refresh(self) -> None:
        """Take up the files if they have changed and fit together; else keep what there is and say why, once."""
        stamp = self._stamp()
        if stamp == self._seen:
            return
        self._seen = stamp
        try:
            self._load()
            self.context.load_cert_chain(*self._files)
            log.info("the certificate in %s is in use now", self._files[0])
        except UsageError as error:
            log.error("%s; the certificate from before stays in use", error)

    def _load(self) -> ssl.SSLContext:
        """A fresh context with the files."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        cert, key = self._files
        try:
            context.load_cert_chain(cert, key, password=_no_passphrase)
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
            raise UsageError(f"{cert} and {key} are no certificate with its key ({reason})") from None
        return context

    def _stamp(self) -> tuple[tuple[int, int, int], ...]:
        """Changes when a file does; zeros for one that is gone for a moment."""
        return tuple(_stamp(path) for path in self._files)


def _stamp(path: Path) -> tuple[int, int, int]:
    try:
        found = path.stat()
    except OSError:
        return 0, 0, 0
    return found.st_mtime_ns, found.st_size, found.st_ino


def _no_passphrase() -> str:
    """OpenSSL would ask on the terminal."""
    raise ValueError("the key has a passphrase; give one without, mode 0600")


def open_tls(cert: Path | None, key: Path | None) -> Tls | None:
    """TLS from two files, or none without them. Raises UsageError for one without the other."""
    if cert is None and key is None:
        return None
    if cert is None or key is None:
        raise UsageError("--tls-cert and --tls-key go together: the certificate with its chain, and its private key")
    return Tls(cert, key)

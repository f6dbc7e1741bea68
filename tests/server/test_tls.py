"""TLS with real certificates: trusted, expired, of another host or authority; replaced while the server runs."""

import asyncio
import contextlib
import datetime
import ipaddress
import ssl
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from covey_edge import calls
from covey_edge.transport import Backoff, ServerError, Traffic, connect
from covey_server import tls
from covey_server.tls import Tls
from covey_shared import keys
from covey_shared.errors import UsageError
from tests.helpers_server import ServerProcess, write_task

DAY = datetime.timedelta(days=1)


class Authority:
    """A private authority and the server certificates that it signs."""

    def __init__(self, folder: Path, name: str = "test authority"):
        self.folder, self.key = folder, ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        usage = x509.KeyUsage(*[i in (5, 6) for i in range(9)])
        builder = self._builder(self.name, self.key, 30 * DAY)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        self.cert = builder.add_extension(usage, critical=True).sign(self.key, hashes.SHA256())
        self.path = folder / f"{name}.pem"
        self.path.write_bytes(self.cert.public_bytes(serialization.Encoding.PEM))

    def _builder(
        self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, life: datetime.timedelta
    ) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(self.name).public_key(key.public_key())
        builder = builder.serial_number(x509.random_serial_number())
        return builder.not_valid_before(now - 2 * DAY).not_valid_after(now + life)

    def issue(self, stem: str, host: str = "127.0.0.1", life: datetime.timedelta = DAY) -> tuple[Path, Path]:
        """A certificate for a host and its key, as files."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, stem)])
        names: list[x509.GeneralName] = [x509.IPAddress(ipaddress.ip_address(host))]
        builder = self._builder(subject, key, life).add_extension(x509.SubjectAlternativeName(names), critical=False)
        identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        cert = builder.add_extension(identifier, critical=False).sign(self.key, hashes.SHA256())
        paths = self.folder / f"{stem}.crt", self.folder / f"{stem}.key"
        paths[0].write_bytes(cert.public_bytes(serialization.Encoding.PEM))
        paths[1].write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return paths


def joined(url: str, ca: Path | None) -> str:
    """The name under which a device comes in."""

    async def main() -> str:
        async with connect(url, keys.generate(), Traffic(), ca) as transport:
            transport.backoff = Backoff(first_s=0.01, patience_s=1.0)
            name = await calls.enroll(transport, "phone", "")
            assert (await calls.get_task(transport)).name == "test"
            return name

    return asyncio.run(main())


def test_a_device_comes_in_over_tls_and_trusts_only_its_authority(tmp_path: Path) -> None:
    authority, other = Authority(tmp_path), Authority(tmp_path, "another authority")
    cert, key = authority.issue("server")
    with ServerProcess(write_task(tmp_path), "--tls-cert", str(cert), "--tls-key", str(key)) as server:
        url = server.url()
        assert url.startswith("https://127.0.0.1:")
        assert joined(url, authority.path) == "phone"
        for ca in (other.path, None):
            with pytest.raises(ServerError, match="is not trusted"):
                joined(url, ca)
        assert server.stop()[0] == 0


def expired(authority: Authority) -> tuple[Path, Path]:
    return authority.issue("old", life=-DAY)


def of_another_host(authority: Authority) -> tuple[Path, Path]:
    return authority.issue("elsewhere", host="192.0.2.1")


@pytest.mark.parametrize("make", [expired, of_another_host])
def test_a_wrong_certificate_is_refused_at_once(tmp_path: Path, make: Callable[[Authority], tuple[Path, Path]]) -> None:
    authority = Authority(tmp_path)
    cert, key = make(authority)
    with ServerProcess(write_task(tmp_path), "--tls-cert", str(cert), "--tls-key", str(key)) as server:
        begun = time.monotonic()
        with pytest.raises(ServerError, match="is not trusted"):
            joined(server.url(), authority.path)
        assert time.monotonic() - begun < 15


def serial(context: ssl.SSLContext, authority: Authority) -> int:
    """The serial number of the certificate that a context shows, by a handshake in memory."""
    client = ssl.create_default_context(cafile=str(authority.path))
    ins, outs = ssl.MemoryBIO(), ssl.MemoryBIO()
    back, forth = ssl.MemoryBIO(), ssl.MemoryBIO()
    one = client.wrap_bio(ins, outs, server_hostname="127.0.0.1")
    two = context.wrap_bio(back, forth, server_side=True)
    for _ in range(4):
        for side in (one, two):
            with contextlib.suppress(ssl.SSLWantReadError):
                side.do_handshake()
            back.write(outs.read())
            ins.write(forth.read())
    shown = one.getpeercert(binary_form=True)
    assert shown is not None
    return x509.load_der_x509_certificate(shown).serial_number


def test_a_certificate_is_replaced_while_the_server_runs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    authority = Authority(tmp_path)
    cert, key = authority.issue("server")
    first = x509.load_pem_x509_certificate(cert.read_bytes()).serial_number
    running = Tls(cert, key)
    assert serial(running.context, authority) == first
    later, later_key = authority.issue("later")
    second = x509.load_pem_x509_certificate(later.read_bytes()).serial_number
    cert.write_bytes(later.read_bytes())  # the key is not there yet
    running.refresh()
    assert serial(running.context, authority) == first
    assert "stays in use" in caplog.text
    key.write_bytes(later_key.read_bytes())
    running.refresh()
    assert serial(running.context, authority) == second
    cert.unlink()
    running.refresh()
    assert serial(running.context, authority) == second


def test_the_server_takes_up_new_files_by_itself(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    cert, key = authority.issue("server")
    code = "import sys; from covey_server import tls; tls.POLL_S = 0.05; from covey_shared.cli import main; sys.exit(main())"  # noqa: E501
    with ServerProcess(write_task(tmp_path), "--tls-cert", str(cert), "--tls-key", str(key), code=code) as server:
        url = server.url()
        assert joined(url, authority.path) == "phone"
        new = Authority(tmp_path, "next authority")
        for path, fresh in zip((cert, key), new.issue("next"), strict=True):
            path.write_bytes(fresh.read_bytes())
        deadline = time.monotonic() + 10
        while not believed(url, new.path):
            assert time.monotonic() < deadline
            time.sleep(0.1)


def believed(url: str, ca: Path) -> bool:
    """Whether a device trusts what the server shows; it is refused later, since its name is another key's."""
    try:
        joined(url, ca)
    except ServerError:
        return False
    except UsageError as error:
        return "another device is enrolled" in str(error)
    return True


def test_old_versions_of_tls_are_not_spoken(tmp_path: Path) -> None:
    cert, key = Authority(tmp_path).issue("server")
    assert tls.open_tls(None, None) is None
    assert Tls(cert, key).context.minimum_version == ssl.TLSVersion.TLSv1_2

"""ONNX Runtime Web comes on request, whole, over a connection that is checked, and as npm published it."""

from __future__ import annotations

import base64
import hashlib
import io
import shutil
import ssl
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from ltcompile.errors import Unavailable
from ltcompile.runtimes import _venvs, _web

ARCHIVE = f"onnxruntime-web-{_web.VERSION}.tgz"


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """One with the files, whose SHA-512 is what is expected; nothing is in the cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with tarfile.open(fileobj=(buffer := io.BytesIO()), mode="w:gz") as packed:
        for name in (*_web.FILES, "other.js"):
            (entry := tarfile.TarInfo(f"package/dist/{name}")).size = len(name)
            packed.addfile(entry, io.BytesIO(name.encode()))
    data = buffer.getvalue()
    monkeypatch.setattr(_web, "SHA512", base64.b64encode(hashlib.sha512(data).digest()).decode())
    return data


def check_installed() -> None:
    """All files, and nothing else."""
    assert _venvs.install("site") == {"onnxruntime-web": _web.VERSION} and _web.missing() is None
    assert {path.name for path in _web.folder().iterdir()} == set(_web.FILES)
    assert all((_web.folder() / name).read_text() == name for name in _web.FILES)


def check_refused(reason: str) -> None:
    with pytest.raises(Unavailable, match=reason):
        _venvs.install("site")
    assert _web.missing() is not None and not list(_web.folder().iterdir())


def test_without_a_network_a_copy_will_do(archive: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", (tmp_path / "nowhere").as_uri())
    check_refused(rf"cannot be downloaded: .*; check the network, or copy that file to .*{ARCHIVE} by other means")
    (copy := _web.folder() / ARCHIVE).write_bytes(archive + b"more")
    with pytest.raises(Unavailable, match=rf"{ARCHIVE} is not the .* that npm published: its SHA-512 is another; remove it"):
        _venvs.install("site")
    copy.write_bytes(archive)
    assert _venvs.install("site") and _web.missing() is None


class Registry(ThreadingHTTPServer):
    """A registry of packages on this machine that sends `data`, of which `sent` bytes arrive; over HTTPS, with a certificate of its own."""

    def __init__(self, folder: Path) -> None:
        self.data, self.sent, self.paths = b"", 1 << 30, list[str]()
        super().__init__(("127.0.0.1", 0), Handler)
        self.certificate = folder / "certificate.pem"
        names = ("-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1")
        make = ("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2", *names)
        subprocess.run([*make, "-keyout", folder / "key.pem", "-out", self.certificate], check=True, capture_output=True)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, folder / "key.pem")
        self.socket = context.wrap_socket(self.socket, server_side=True)

    def handle_error(self, *_: object) -> None:
        """A client that does not trust the certificate hangs up."""


class Handler(BaseHTTPRequestHandler):
    server: Registry

    def do_GET(self) -> None:
        self.server.paths.append(self.path)
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.server.data)))
        self.end_headers()
        self.wfile.write(self.server.data[: self.server.sent])

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate, and is not installed")
class TestHttps:
    @pytest.fixture
    def registry(self, archive: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
        with Registry(tmp_path) as server:
            server.data = archive
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
            monkeypatch.setenv("NPM_CONFIG_REGISTRY", f"https://127.0.0.1:{server.server_port}/")
            monkeypatch.setenv("SSL_CERT_FILE", str(server.certificate))
            yield server
            server.shutdown()

    def test_it_is_downloaded_checked_and_unpacked(self, registry: Registry) -> None:
        check_installed()
        assert registry.paths == [f"/onnxruntime-web/-/{ARCHIVE}"]

    def test_a_certificate_that_nothing_vouches_for_is_refused(self, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("SSL_CERT_FILE")
        check_refused(r"https://.* cannot be downloaded: .*CERTIFICATE_VERIFY_FAILED")
        assert registry.paths == []

    def test_another_file_is_refused(self, registry: Registry) -> None:
        registry.data += b"more"
        check_refused(rf"https://.*{ARCHIVE} is not the {ARCHIVE} that npm published: its SHA-512 is another; set NPM_CONFIG_REGISTRY")

    def test_a_connection_that_is_cut_is_named(self, registry: Registry) -> None:
        registry.sent = len(registry.data) // 2
        check_refused(rf"cannot be downloaded: IncompleteRead\({registry.sent} bytes read, .*; check the network")
        registry.sent = len(registry.data)
        check_installed()

    def test_a_registry_without_the_file(self, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Handler, "do_GET", lambda self: self.send_error(404))
        check_refused(r"cannot be downloaded: HTTP Error 404: Not Found; check the network")

    def test_no_server_is_a_reason(self, registry: Registry) -> None:
        registry.shutdown()
        registry.server_close()
        check_refused(r"cannot be downloaded: .*; check the network, or copy")

"""ONNX Runtime Web, which a written page brings along: fetched only on request, and only as npm published it."""

from __future__ import annotations

import base64
import hashlib
import http.client
import io
import os
import tarfile
import urllib.request
import zlib
from pathlib import Path

from ltcompile.errors import Unavailable
from ltcompile.paths import cache_folder, check_room, write_bytes

NAME, VERSION = "site", "1.30.0"
REGISTRY = "https://registry.npmjs.org"  # or NPM_CONFIG_REGISTRY
SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="  # of the archive; npm's "integrity"
FILES = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")
MOST_BYTES = 1 << 26
TIMEOUT_S = 60


def folder() -> Path:
    """Where the files are, or would be."""
    return cache_folder() / "web" / f"onnxruntime-web-{VERSION}"


def missing() -> str | None:
    """Why there is no ONNX Runtime Web here and what to do, or None."""
    if all((folder() / name).is_file() for name in FILES):
        return None
    return f"ONNX Runtime Web is not installed; run `ltcompile doctor --install {NAME}` (a download of 33 MB)"


def install() -> dict[str, str]:
    """Take the files from npm's archive in `folder()`, or download it; its version.

    Raises:
        InvalidFile: there is no space. Unavailable: nothing can be downloaded, or the archive is not the one that npm published.
    """
    archive = folder() / f"onnxruntime-web-{VERSION}.tgz"
    archive.parent.mkdir(parents=True, exist_ok=True)
    check_room(archive.parent, MOST_BYTES, "ONNX Runtime Web")
    url = f"{os.environ.get('NPM_CONFIG_REGISTRY', REGISTRY).rstrip('/')}/onnxruntime-web/-/{archive.name}"
    source, data = (str(archive), archive.read_bytes()) if archive.is_file() else (url, _downloaded(url, archive))
    if base64.b64encode(hashlib.sha512(data).digest()).decode() != SHA512:
        raise Unavailable(
            f"{source} is not the {archive.name} that npm published: its SHA-512 is another; "
            f"{'remove it' if archive.is_file() else f'set NPM_CONFIG_REGISTRY to another registry, or copy that file to {archive}'}, "
            "and install again"
        )
    try:
        with tarfile.open(fileobj=io.BytesIO(data)) as packed:
            for name in FILES:
                member = packed.extractfile(f"package/dist/{name}")
                assert member is not None
                write_bytes(folder() / name, member.read())
    except (tarfile.TarError, KeyError, zlib.error) as error:
        raise Unavailable(f"{source} cannot be unpacked: {error}; please report this") from error
    return {"onnxruntime-web": VERSION}


def _downloaded(url: str, archive: Path) -> bytes:
    """Raises Unavailable where nothing comes of `url`, or not all of it."""
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:
            data = bytes(answer.read(MOST_BYTES))
            if missing_bytes := getattr(answer, "length", None):
                raise http.client.IncompleteRead(data, missing_bytes)
            return data
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise Unavailable(
            f"{url} cannot be downloaded: {error}; check the network, or copy that file to {archive} by other means, and install again"
        ) from error

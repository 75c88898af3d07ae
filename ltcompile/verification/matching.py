"""Which files belong together: a network, the claims about it, the network that it was cut from, and labelled images."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ltcompile.core.deployment import Deployment
from ltcompile.core.fields import short
from ltcompile.errors import InvalidFile, InvalidSetting, TicketMismatch
from ltcompile.verification.claims import Claims, Timing, is_page_of_a_network
from ltcompile.verification.images import Labels, read_images
from ltcompile.verification.network import Array, Network, open_network

RUNTIME = "onnxruntime"
RUNTIMES = (RUNTIME, "openvino", "tract")  # that read ONNX files without torch; the others on a CPU alone
BYTES_PER_PARAM = (0.9, 8.0)  # of an ONNX file of any precision, with folded norms and names
GRAPH_BYTES = 1 << 20  # what a file may hold besides weights
DEFAULT_CLAIMS = ("report.json", "bench.json")


def default_claims(path: Path) -> Path:
    """The claims in the folder of a network; where there are none, the record that `shrink` wrote with the file."""
    for name in DEFAULT_CLAIMS:
        claims = path.parent / name
        if claims.is_file() and not is_page_of_a_network(claims):
            return claims
    if (record := path.with_suffix(".json")).is_file():
        return record
    raise InvalidFile(f"there is no {' and no '.join((*DEFAULT_CLAIMS, record.name))} in the folder of {path}; name one with --claims")


def check_belongs(small: Network, claims: Claims) -> None:
    """Raises InvalidFile or TicketMismatch where the claims are about another network."""
    if small.metadata.get("producer") != "ltcompile":
        raise InvalidFile(f"{small.path} was not made by `ltcompile shrink`, so no claims can be matched to it; use a file that was")
    if claims.checksum is not None and claims.checksum != small.checksum:
        record = small.path.with_suffix(".json")
        raise TicketMismatch(
            f"{small.path} was made from the {origin(small)} {small.checksum[:12] or 'of no name'}, {claims.name} is about "
            f"{claims.checksum[:12]}; take the claims that were made with this file{f', as in --claims {record}' if record.is_file() else ''}"
        )
    if claims.shape is not None and claims.shape != small.shape:
        raise TicketMismatch(f"{small.path} takes {_taken(small)}, {claims.name} is about {claims.shape}; take the claims of this file")


def origin(small: Network) -> str:
    return "ticket" if "ticket_checksum" in small.metadata else "network"


def _taken(network: Network) -> str:
    return f"images {network.shape}" if network.shape else ", ".join(f"{end.name} {short(end.shape)}" for end in network.inputs)


def images(small: Network, path: Path) -> tuple[Array, Labels]:
    """Raises InvalidSetting where the network is no classifier of images."""
    if small.shape is None or small.classes is None:
        raise InvalidSetting(f"--data {path}: labels are of networks that turn images into logits, and this one takes {_taken(small)}")
    return read_images(path, small.shape, small.classes)


def selected(small: Network, claims: Claims, on: Deployment | None) -> list[Timing]:
    """The timings on the network's runtime, or those for `on` alone. Raises InvalidSetting."""
    rows = [row for row in claims.timings if row.runtime == small.runtime and (row.device == "cpu" or small.runtime == RUNTIME)]
    if on is None:
        return rows
    if on.runtime != small.runtime or on.threads:
        raise InvalidSetting(
            f"--on {on}: claims are repeated by {small.runtime} alone, on its own number of threads; write "
            f"{on.device}:{small.runtime}:b{on.batch}, or name another --runtime"
        )
    if on.precision != small.precision:
        raise InvalidSetting(f"--on {on}: {small.path.name} is a file in {small.precision}; name that, or take another file")
    if found := [row for row in rows if (row.device, row.batch) == (on.device, on.batch)]:
        return found
    known = ", ".join(dict.fromkeys(deployment(small, row) for row in rows)) or "nowhere"
    raise InvalidSetting(f"{claims.name} has no timing on {on}; it was timed on: {known}; choose one of these, or bench it there")


def open_dense(path: Path, small: Network, claims: Claims) -> Network:
    """The network that the small one was cut from, as far as its file shows. Raises InvalidFile or TicketMismatch."""
    dense = open_network(path, small.runtime)
    if (_taken(dense), dense.classes, len(dense.outputs)) != (_taken(small), small.classes, len(small.outputs)):
        raise TicketMismatch(
            f"{path} turns {_taken(dense)} into {_given(dense)}, and {small.path.name} {_taken(small)} into {_given(small)}; "
            "take the network that it was cut from"
        )
    checksums = {network.checksum for network in (dense, small)} - {""}
    params = claims.dense_params
    least, most = (0.0, np.inf) if params is None else (BYTES_PER_PARAM[0] * params, BYTES_PER_PARAM[1] * params + GRAPH_BYTES)
    if len(checksums) > 1 or not least <= len(dense.data) <= most:
        raise TicketMismatch(
            f"{path}, of {len(dense.data):,} bytes, is not the network that {small.path.name} was cut from"
            f"{'' if params is None else f', which has {params:,} params'}; "
            f"write it with `ltcompile bench {small.path.name} --write-dense {path.name}`"
        )
    return dense


def _given(network: Network) -> str:
    return f"{network.classes} logits" if network.classes else f"{len(network.outputs)} outputs"


def deployment(small: Network, row: Timing) -> str:
    return f"{row.device}:{row.runtime}:b{row.batch}:{small.precision}"

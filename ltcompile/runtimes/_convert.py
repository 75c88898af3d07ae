"""Files in a runtime's own format: handed over as they are, or converted from ONNX by the runtime's own program, in a process of its own."""

from __future__ import annotations

import contextlib
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ltcompile.errors import InvalidFile, Unavailable
from ltcompile.paths import cache_folder, writing
from ltcompile.runtimes._base import Subject

Convert = Callable[[Path, Path, str], None]  # an ONNX file, the file to write and its precision
TIMEOUT_S = 900
TYPES = {1: "float32", 2: "uint8", 3: "int8", 6: "int32", 7: "int64", 9: "bool", 10: "float16", 11: "float64"}  # of ONNX


class End(NamedTuple):
    """An input or output of an ONNX file; sizes that vary are None."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]


def ends(file: Path | bytes) -> tuple[list[End], list[End]]:
    """The inputs and outputs of an ONNX file. Raises InvalidFile where it is not one."""
    import onnx

    try:
        proto = onnx.load_from_string(file) if isinstance(file, bytes) else onnx.load(str(file), load_external_data=False)
    except Exception as error:
        raise InvalidFile(f"{'the network' if isinstance(file, bytes) else file} cannot be read as ONNX; export it again") from error
    found = []
    for values in (proto.graph.input, proto.graph.output):
        tensors = [(value.name, value.type.tensor_type) for value in values]
        found.append([
            End(name, TYPES.get(t.elem_type, "?"), tuple(d.dim_value if d.HasField("dim_value") else None for d in t.shape.dim))
            for name, t in tensors
        ])  # fmt: skip
    return found[0], found[1]


def layers_in(text: str, file: Path) -> str:
    """The layers of an ONNX file whose operators a converter's message names, as the end of a message; "" where there are none."""
    import onnx

    nodes = onnx.load(str(file), load_external_data=False).graph.node
    found = [node.name or node.output[0] for node in nodes if re.search(rf"\b{node.op_type}\b", text)]
    return f" (layer {', '.join(map(repr, found[:3]))}{', ...' if len(found) > 3 else ''})" if found else ""


@contextlib.contextmanager
def own_file(subject: Subject, runtime: str, suffix: str, convert: Convert) -> Iterator[Path]:
    """The subject's file in the format `suffix`: its own, or one converted from its ONNX file. Raises Unavailable where that fails."""
    if subject.file is not None:
        if subject.file.suffix != suffix:
            raise Unavailable(f"{runtime} reads {suffix} and .onnx files, not {subject.file.name}")
        yield subject.file
        return
    with tempfile.TemporaryDirectory(prefix="ltcompile-") as folder:
        path = Path(folder) / f"network{suffix}"
        convert(one_file(subject, runtime, Path(folder)), path, subject.precision)
        yield path


def one_file(subject: Subject, runtime: str, folder: Path) -> Path:
    """The subject's ONNX file in `folder`, with weights that it keeps in other files inside. Raises Unavailable where it has none."""
    import onnx

    given, path = subject.need_onnx(runtime), folder / "network.onnx"
    if isinstance(given, bytes):
        path.write_bytes(given)
    else:
        onnx.save(onnx.load(str(given)), str(path))
    return path


def run(
    command: Sequence[str | Path], what: str, folder: Path | None = None, kept: Path | None = None, timeout_s: float = TIMEOUT_S
) -> str:
    """The output of a program that writes or installs `what`. Its log is kept where it fails.

    Raises:
        Unavailable: it fails, with its last line and the place of its log. InvalidFile: there is no space for the log.
    """
    with tempfile.TemporaryFile() as log:
        try:
            code = subprocess.run(
                [str(part) for part in command],
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                timeout=timeout_s,
                check=False,
            ).returncode
            reason = "" if code == 0 else f"it ended with {f'signal {-code}' if code < 0 else f'code {code}'}"
        except OSError as error:
            reason = f"it does not start ({error})"
        except subprocess.TimeoutExpired:
            reason = f"it did not end within {timeout_s:g} s"
        log.seek(0)
        text = log.read().decode(errors="replace")
    if reason:
        raise failed(what, reason, text, kept)
    return text


def failed(what: str, reason: str, text: str, kept: Path | None = None) -> Unavailable:
    """The error of a program that did not make `what`, with the last line of what it printed, `text`, and the place where all of it is kept.

    Raises InvalidFile where there is no space for that.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    kept = kept or cache_folder() / "logs" / f"{Path(what).name}.log"
    with writing(kept):
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(text)
    return Unavailable(f"{what} was not made: {reason}: {lines[-1][:300] if lines else 'it printed nothing'}; its log is {kept}")

"""Files of torch.save as data: nothing in them is executed, and reading one takes no more memory than it is long.

An archive can unfold to a thousand times its size, and a tensor of stride 0 can claim any shape: a network saves neither.
"""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

from ltcompile.core.fields import short
from ltcompile.errors import InvalidFile

if TYPE_CHECKING:
    from torch import Tensor

SHARING = 16  # names that a file may give to the same bytes, on average


def read_torch(path: Path, what: str, remedy: str = "take a fresh copy") -> Any:
    """The tensors and plain values in `path`, which should be `what`; `remedy` says what to do where it is not.

    Raises:
        InvalidFile: it is missing, no file of torch.save, damaged, or holds code.
    """
    import torch

    check_is_file(path, what)
    try:
        if zipfile.is_zipfile(path):
            _check_archive(path)
        with warnings.catch_warnings():  # about protocols that torch.save never writes, to the maintainers of torch
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise InvalidFile(f"{path} is not a {what}: it is damaged, or holds more than tensors and plain values; {remedy}") from error
    except Exception as error:  # torch raises a dozen types for a broken archive
        message = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        message = message if "weights_only" not in message else "it is of a kind that can hold code"  # torch's advice is to run it
        raise InvalidFile(f"{path} cannot be read as a {what}: {message}; {remedy}") from error


def read_safetensors(path: Path, what: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the texts in the .safetensors file `path`, which is called a `what`. Raises InvalidFile."""
    from safetensors import safe_open

    check_is_file(path, what)
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118  (it is not a mapping)
    except Exception as error:  # safetensors raises its own types, and torch's for dtypes that it lacks
        raise InvalidFile(f"{path} cannot be read as a {what}: {error}; take a fresh copy") from error


def check_is_file(path: Path, what: str) -> None:
    """Raises InvalidFile unless there is a file that can be read, and not a folder or a pipe that never ends."""
    if path.is_dir():
        raise InvalidFile(f"{path} is a folder; name the {what} inside it")
    if not path.is_file():
        raise InvalidFile(f"there is no {what} at {path}; check its name")
    if not path.stat().st_size:
        raise InvalidFile(f"there is no {what} in {path}, which is empty; take a fresh copy")


def _check_archive(path: Path) -> None:
    """torch.save compresses nothing."""
    with zipfile.ZipFile(path) as archive:
        unfolded = sum(entry.file_size for entry in archive.infolist())
    if unfolded > path.stat().st_size:
        raise InvalidFile(f"{unfolded:,} bytes are packed into its {path.stat().st_size:,}, which torch.save does not do")


def check_held(tensors: Mapping[str, Any], size: int) -> None:
    """Raises InvalidFile unless these are dense tensors that a file of `size` bytes can hold."""
    total = 0
    for name, tensor in tensors.items():
        if not isinstance(name, str) or not _is_dense(tensor):
            raise InvalidFile(f"{short(name)} is not a dense tensor of numbers, as weights are")
        total += tensor.nbytes
        if tensor.nbytes > tensor.untyped_storage().nbytes() or total > SHARING * size:
            raise InvalidFile(f"{short(name)} claims the shape {short(tuple(tensor.shape))}, which is more than the file holds")


def check_finite(tensors: Mapping[str, Tensor]) -> None:
    """Raises InvalidFile where a tensor holds values that are infinite or NaN."""
    import torch

    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise InvalidFile(f"{name!r} holds values that are infinite or not a number (NaN); train it again")


def _is_dense(value: Any) -> bool:
    import torch

    if not isinstance(value, torch.Tensor) or value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized:
        return False
    floats = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    return value.dtype in (*floats, torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)

"""Forged files: pickles that would run, tickets with a checksum that fits, ONNX files with changes."""

from __future__ import annotations

import io
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import torch
from readers import whole_onnx

from ltcompile.core import ticket as tickets

MARK = "executed"


class Evil:
    """What a pickle of it calls when it is read."""

    def __init__(self, call: Callable[..., Any], *arguments: Any) -> None:
        self.call = call, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


def global_pickle(module: str, name: str, protocol: int = 0) -> bytes:
    """A pickle that looks up module.name and calls it with the command, without the help of a class."""
    if protocol < 4:
        return f"c{module}\n{name}\n(Vtouch {MARK}\ntR.".encode()
    texts = (b"\x8c" + bytes([len(text)]) + text.encode() for text in (module, name))
    return b"\x80\x04" + b"".join(texts) + b"\x93(Vtouch " + MARK.encode() + b"\ntR."


PICKLES = {
    "reduce": lambda: pickle.dumps(Evil(os.system, f"touch {MARK}")),
    "reduce-eval": lambda: pickle.dumps(Evil(eval, f"__import__('os').system('touch {MARK}')")),
    "global": lambda: global_pickle("os", "system"),
    "global-posix": lambda: global_pickle("posix", "system"),
    "global-builtins": lambda: global_pickle("builtins", "exec"),
    "global-through-torch": lambda: global_pickle("torch", "os.system", 4),
    "global-subprocess": lambda: global_pickle("subprocess", "getoutput"),
    "global-hub": lambda: global_pickle("torch.hub", "load"),
    "hidden-behind-a-ticket": lambda: pickle.dumps({"kind": "ltcompile ticket", "format": 1, "header": Evil(os.system, f"touch {MARK}")}),
}


def forged(ticket: Path, change: Callable[[dict[str, Any], dict[str, torch.Tensor]], object]) -> bytes:
    """The ticket with another description and other weights, and a checksum that fits."""
    value = torch.load(ticket, weights_only=True)
    header, weights = json.loads(value["header"]), value["weights"]
    change(header, weights)
    text = json.dumps(header, sort_keys=True)
    torch.save({**value, "header": text, "weights": weights, "checksum": tickets._checksum(text, weights, {})}, made := io.BytesIO())
    return made.getvalue()


def onnx_file(path: Path, change: Callable[[Any], object]) -> Path:
    model = onnx.load_from_string(whole_onnx())
    change(model)
    path.write_bytes(model.SerializeToString())
    return path

"""The library's errors name parameters, as in `rounds=0`; a command's user reads the options that set them."""

from __future__ import annotations

import re
from typing import Any

RENAMED = {"folder": "name", "margin_points": "margin", "ratios": "layer_ratio", "target_time": "target_speedup", "timer": "on"}
OF_FIND = {"download", "skip_damaged"}  # which commands that read a ticket's data lack: what `find` was allowed holds for them
_PARAMETER = re.compile(r"(?<![\w.'\"/])([a-z][a-z_]*)=([\w.+-]*(?<!\.))")


def with_flags(message: str, command: Any) -> str:
    """`message` with each parameter of the click `command` as its option: `rounds=0` as `--rounds 0`, `resume=True` as `--resume`, `keep=` as
    `--keep`. A setting that `find` takes only from a recipe file is `--set SECTION.KEY=VALUE`.
    """
    flags: dict[str, str] = {
        opt.removeprefix("--").replace("-", "_"): opt for param in command.params for opt in param.opts if opt.startswith("--")
    }

    def option(found: re.Match[str]) -> str:
        name, value = found[1], found[2]
        flag = flags.get(name) or flags.get(RENAMED.get(name, ""))
        if flag is not None:
            if value in ("", "True"):
                return flag + " " * message.startswith(("'", '"'), found.end())
            return f"{flag} {value}"
        if name in OF_FIND and value == "True":
            return f"find --{name.replace('_', '-')}"
        section = _section(name) if "set" in flags else None
        return found[0] if section is None else f"--set {section}.{name}={value}".replace("--set .", "--set ")

    return _PARAMETER.sub(option, message)


def _section(key: str) -> str | None:
    """Where a recipe file holds a setting; None where it holds none of that name."""
    from ltcompile.search.settings import sections

    return next((name for name, keys in sections().items() if key in keys), None)

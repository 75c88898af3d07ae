"""ltcompile doctor: what this machine has, what will be used, and why."""

from __future__ import annotations

import json
from typing import Any

import typer

SUMMARY = "Show what this machine has."
EPILOG = "Examples:  ltcompile doctor --json  ·  ltcompile doctor --install litert"


def doctor(
    install: str | None = typer.Option(
        None,
        metavar="FORMAT",
        help="Install what writes a format, into a place of its own under ~/.cache: litert, executorch, coreml, or site (ONNX Runtime Web).",
    ),
    as_json: bool = typer.Option(False, "--json", help="Print as JSON."),
) -> None:
    """Show what this machine has: devices, precisions, runtimes, formats, versions; what will be used and why."""
    if install is not None:
        _install(install, as_json)
        return
    report = examine()
    if as_json:
        typer.echo(json.dumps(report))
        return
    machine = report["machine"]
    typer.echo(f"processor  {machine['cpu']}, threads: {machine['threads']}, {machine['simd']}")
    typer.echo(f"GPU        {machine['gpu'] or 'none that torch sees'}")
    typer.echo(f"training   on {report['training']['device']} in {report['training']['precision']}: {report['training']['why']}")
    for device, runtimes in report["runtimes"].items():
        typer.secho(f"runtimes on {device}", bold=True)
        for name, reason in runtimes.items():
            typer.echo(_line(name, reason))
    typer.secho("formats of shrink", bold=True)
    for suffix, reason in report["formats"].items():
        typer.echo(_line("site/" if suffix == ".html" else suffix, reason))
    typer.secho("versions", bold=True)
    for package, version in report["versions"].items():
        typer.echo(f"  {package:<16} {version}")


def _line(name: str, reason: str | None) -> str:
    return f"  {'works' if reason is None else 'not here':<9} {name:<14} {reason or ''}".rstrip()


def _install(name: str, as_json: bool) -> None:
    from ltcompile.runtimes import _venvs, _web

    if not as_json:
        size = "33 MB" if name == _web.NAME else "minutes, and gigabytes"
        typer.echo(f"installing {name} into {_venvs.folder(name)}: {size}")
    versions = _venvs.install(name)
    typer.echo(json.dumps({"installed": name, "versions": versions}) if as_json else ", ".join(f"{k} {v}" for k, v in versions.items()))


def examine() -> dict[str, Any]:
    from ltcompile.core.deployment import DEVICES
    from ltcompile.core.records import provenance
    from ltcompile.deploy import formats
    from ltcompile.runtimes import available
    from ltcompile.training import multiplies_bf16, pick_device

    device = pick_device()
    half = multiplies_bf16(device)
    known = provenance()
    return {
        "machine": known["machine"],
        "versions": known["versions"],
        "training": {
            "device": device.type,
            "precision": "bf16 autocast or fp32" if half else "fp32",
            "why": "long trainings take what is faster for their network" if half else "it emulates bfloat16, far slower than fp32",
        },
        "formats": {suffix: formats.unavailable(kind) for suffix, kind in formats.by_suffix().items()},
        "runtimes": {name: available(name) for name in DEVICES},
    }

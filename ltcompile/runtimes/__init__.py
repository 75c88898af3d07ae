"""What runs a network: one file a runtime, found by its name, and the only place that opens sessions.

A runtime is a file `x.py` here that offers

    unavailable(device) -> str | None                  why it cannot run on "cpu" or "cuda" here and what to do, None where it works
    load(subject, deployment, options) -> Session      the network ready to run on that device, for batches of that size

and, where they are not the usual ones, the constants

    NAMES = ("x",)                     what users call it, by default the file's name
    ENGINE = {"fp32": "", ...}         the precisions in which the engine tries it on a CPU; "" or the reason why it does not
    READS_ONNX = True                  it reads the subject's ONNX file, not its module
    THREADS = True                     it takes `deployment.threads`
    SLEEPS = True                      it takes `options.spin`
    DEFAULT = False                    benchmarks run it only where it is named
    READS = ".x"                       its own format, `subject.file`, which it makes of an ONNX file where there is none
    APART = True                       on a CPU, `load_apart` runs it in a process of its own
    IMPORTS = ("x",)                   what `load` imports and `unavailable` does not, which is not memory that a network takes
    TRACED = {"cpu": ("fp32", ...)}    by device, the precisions in which `options.trace` records the time of each operation

A session takes one array, a sequence of arrays or arrays by name, of any rank and dtype, and gives arrays by name:

    session = runtimes.load(Subject("small", module, Path("small.onnx")), Deployment.parse("cpu:onnxruntime:b8:fp32:t2"))
    session.run(images)                             {"logits": ...}; any number of threads may call it
    session.answers(images)                         the first output for any number of rows, in batches
    bound = session.bind(images)                    the inputs in place; bound.call() is what is timed, bound.read() its outputs
    session.layer_times()                           of a session that was opened with `trace`

Runtimes end, hang or disturb each other within one process. `load_apart` opens the same session in a worker process, and bench, sweep,
shrink, verify and the choice of an engine call it. PyTorch's runtimes stay in this process, which has the module; so do GPUs, layer profiles,
and what an engine chose, which serves.

Every caller (bench, profile, sweep, competitors, the engine, int8) comes through `load`, so that batches are handled, threads are set and
spin in one way. Tests walk this folder, and find no session that is opened elsewhere.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ltcompile import registry
from ltcompile.core.memory import watch
from ltcompile.errors import Unavailable
from ltcompile.runtimes._base import Array, Bound, Feeds, Options, Session, Subject, Trace, first_line
from ltcompile.runtimes._remote import Workers, shared

if TYPE_CHECKING:
    from ltcompile.core.deployment import Deployment

__all__ = [
    "Array",
    "Bound",
    "Feeds",
    "Options",
    "Session",
    "Subject",
    "Trace",
    "Workers",
    "available",
    "declared",
    "first_line",
    "load",
    "load_apart",
    "names",
    "shared",
    "unavailable",
]


def names() -> list[str]:
    """All runtimes."""
    return sorted(registry.names(__name__))


def declared(runtime: str, constant: str, default: Any = False) -> Any:
    """What the file of `runtime` declares as `constant`. Raises UnknownName."""
    return getattr(registry.load(__name__, "runtime", runtime), constant, default)


def available(device: str, every: bool = True) -> dict[str, str | None]:
    """Every runtime, or those that benchmarks run by default -> None where it works on `device` ("cpu" or "cuda"), else the reason and what to do.

    Raises:
        InvalidSetting: no such device.
    """
    return {name: unavailable(name, device) for name in names() if every or declared(name, "DEFAULT", True)}


def unavailable(runtime: str, device: str) -> str | None:
    """Why `runtime` cannot run on `device` and what to do, or None where it works.

    Raises:
        UnknownName, InvalidSetting: no such runtime, no such device.
    """
    reason: str | None = registry.load(__name__, "runtime", runtime).unavailable(device)
    return reason


def load(subject: Subject, deployment: Deployment, options: Options | None = None) -> Session:
    """`subject` ready to run at `deployment`.

    Raises:
        UnknownName: no such runtime.
        Unavailable: the runtime does not work here, the subject lacks what it needs, or it cannot compile the network.
    """
    module = registry.load(__name__, "runtime", deployment.runtime)
    if reason := module.unavailable(deployment.device):
        raise Unavailable(f"{deployment.runtime} ({deployment.device}): {reason}")
    if deployment.threads and not declared(deployment.runtime, "THREADS"):
        raise Unavailable(f"{deployment.runtime} takes no number of threads; leave threads out (OMP_NUM_THREADS sets those of PyTorch)")
    options = options or Options()
    if options.trace and deployment.precision not in declared(deployment.runtime, "TRACED", {}).get(deployment.device, ()):
        raise Unavailable(f"{deployment.runtime} records no times of operations in {deployment.precision} on {deployment.device}")
    watched = None
    if options.watch:
        for name in declared(deployment.runtime, "IMPORTS", ()):
            importlib.import_module(name)
        watched = watch(deployment.device)
    session: Session = module.load(subject, deployment, options)
    session.watched = watched
    return session


def load_apart(subject: Subject, deployment: Deployment, options: Options | None = None) -> Session:
    """As `load`, but in a worker process where the runtime runs apart. Raises Crashed, too, as do all functions of the session."""
    if deployment.device != "cpu" or not declared(deployment.runtime, "APART"):
        return load(subject, deployment, options)
    return shared().load(subject, deployment, options or Options())

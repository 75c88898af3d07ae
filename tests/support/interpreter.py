"""Triton's interpreter, in a process for which TRITON_INTERPRET chose it before Triton was imported."""

from __future__ import annotations

from triton.runtime import interpreter


def interpret_quickly() -> None:
    """Leave out whether integers overflow: it takes a third of the time, and without its debug mode the interpreter looks at no result of it."""
    assert not interpreter.interpreter_builder.options.debug
    interpreter.interpreter_builder.options = interpreter.InterpreterOptions(sanitize_overflow=False)

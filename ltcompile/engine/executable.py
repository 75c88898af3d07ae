"""A program in the kernels' layout, ready to run repeatedly on one device: buffers in one arena, constants in place, step by step.

Kernels write into the arena. Values that enter the kernels' layout have buffers of their own, whose padding is zeroed once. PyTorch's
operations allocate their results, which are dropped after their last use; in a CUDA graph all memory stays in place. On a CPU kernels are
their references, so that everything but speed can be checked there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ltcompile import kernels
from ltcompile.engine import cudnn
from ltcompile.engine.memory import Buffer, MemoryPlan, plan_memory
from ltcompile.lower.program import Node, Program

TRITON, CUDNN = "triton", "cudnn"
MODES = GRAPH, DEPENDENT, PERSISTENT = "graph", "dependent graph", "one kernel"


@dataclass(frozen=True)
class Choice:
    """What runs a node: our kernel in a configuration (None for the default), or cuDNN; `times_us` are the times that decided."""

    by: str = TRITON
    config: kernels.Config | None = None
    times_us: Mapping[str, float] = field(default_factory=dict)


def specs(program: Program) -> dict[str, Tensor]:
    """Every value as a tensor on the meta device: its shape and type."""
    values: dict[str, Any] = {name: constant.to("meta") for name, constant in program.constants.items()}
    values[program.input] = torch.empty(program.input_shape, device="meta")
    with torch.no_grad():
        for node in program.nodes:
            values[node.name] = node.run(values)
    return values


def buffers(program: Program, choices: Mapping[str, Choice]) -> list[Buffer]:
    """The outputs of our kernels, each alive until the last read of anything that may be a view of it."""
    shapes, owned, last = specs(program), {program.input: set[str]()}, dict[str, int]()
    for step, node in enumerate(program.nodes):
        for owner in {owner for name in node.reads for owner in owned.get(name, ())}:
            last[owner] = step
        ours, copied = _is_ours(node, choices), node.target == "layout.enter"
        views = set() if copied else {owner for name in node.reads for owner in owned.get(name, ())}
        owned[node.name] = {node.name} if ours else views
        if ours:
            last[node.name] = step
    last |= dict.fromkeys(owned[program.output], len(program.nodes))
    return [
        Buffer(node.name, shapes[node.name].numel() * shapes[node.name].element_size(), step, last[node.name])
        for step, node in enumerate(program.nodes)
        if _is_ours(node, choices)
    ]


def _is_kernel(node: Node) -> bool:
    return node.target.startswith("kernel.")


def _is_ours(node: Node, choices: Mapping[str, Choice]) -> bool:
    return _is_kernel(node) and choices.get(node.name, Choice()).by == TRITON


def persistent_refusal(program: Program) -> str:
    """Why the program cannot be one kernel, or ""."""
    ours = [at for at, node in enumerate(program.nodes) if _is_kernel(node)]
    if not ours:
        return "none of our kernels runs in it"
    between = program.nodes[ours[0] : ours[-1]]
    allowed = ("kernel.", "layout.", "aten.reshape.")  # conversions in between belong to another operation
    other = next((node for node in between if not node.target.startswith(allowed)), None)
    return "" if other is None else f"{other.layer or other.name} is {other.target}, which is none of our kernels"


class Executable:
    """The program on `device`: write `images`, call `run()`, read `answer()`.

    Args:
        program: in the kernels' layout.
        device: the CPU or a GPU.
        choices: what runs each kernel node, by its name; by default our kernels in their default configurations.
        mode: kernels one after the other (GRAPH), each starting while the previous one ends (DEPENDENT), or all as one (PERSISTENT).
    """

    def __init__(self, program: Program, device: torch.device, choices: Mapping[str, Choice] | None = None, mode: str = GRAPH) -> None:
        self.program, self.device, self.mode = program, device, mode
        self.choices = {} if mode == PERSISTENT else dict(choices or {})
        self.constants = {name: constant.to(device) for name, constant in program.constants.items()}
        self.images = torch.zeros(program.input_shape, device=device)
        planned, shapes = buffers(program, self.choices), specs(program)
        self.memory: MemoryPlan = plan_memory(planned)
        self._arena = torch.zeros(max(self.memory.size_bytes, 1), dtype=torch.uint8, device=device)
        self._buffers = {b.name: self._in_arena(b, shapes[b.name]) for b in planned}
        for node in program.nodes:
            if node.target == "layout.enter":
                self._buffers[node.name] = torch.zeros_like(shapes[node.name], device=device)
        self._calls: dict[str, kernels.Call] = {}
        self._fused: kernels.Call | None = None
        self._values: dict[str, Any] = {}
        self._steps = [(self._step(node), node.name, self._last_reads(at)) for at, node in enumerate(program.nodes)]

    @torch.no_grad()
    def run(self) -> None:
        """Run every step once on the current `images`."""
        self._values = {self.program.input: self.images, **self.constants}
        for step, name, unused in self._steps:
            self._values[name] = step()
            for read in unused:
                del self._values[read]

    def answer(self) -> Tensor:
        """The output of the last run; the next one overwrites it."""
        answer: Tensor = self._values[self.program.output]
        return answer

    def _in_arena(self, buffer: Buffer, like: Tensor) -> Tensor:
        start = self.memory.offsets[buffer.name]
        return self._arena[start : start + buffer.size_bytes].view(like.dtype).view(like.shape)

    def _last_reads(self, at: int) -> list[str]:
        """The inputs of node `at` that no later node reads."""
        node, later = self.program.nodes[at], {name for n in self.program.nodes[at + 1 :] for name in n.reads}
        keep = {self.program.output, self.program.input, *self.constants}
        return [name for name in dict.fromkeys(node.reads) if name not in later and name not in keep]

    def _step(self, node: Node) -> Callable[[], Any]:
        if node.target == "layout.enter":
            return lambda: self._enter(node)
        if not _is_kernel(node):
            return lambda: node.run(self._values)
        if self.choices.get(node.name, Choice()).by == CUDNN:
            layer = cudnn.layer(node, self.constants)
            return lambda: layer(*self._read(node))
        if self.mode == PERSISTENT and self._launches():
            first = node is next(n for n in self.program.nodes if _is_kernel(n))
            return lambda: self._launch_all(node) if first else self._buffers[node.name]
        return lambda: self._launch(node)

    def _launches(self) -> bool:
        """Whether kernels run on this device; otherwise their references do."""
        return self.device.type == "cuda" or interpreting()

    def _enter(self, node: Node) -> Tensor:
        """One copy that casts, permutes and leaves the padding as it is, zero."""
        x, y = self._values[node.args[0].name], self._buffers[node.name]
        y[..., : x.shape[1]].copy_(x.permute(0, 2, 3, 1) if x.dim() == 4 else x)
        return y

    def _read(self, node: Node) -> tuple[Tensor, Tensor | None]:
        """The input among its arguments, and the residual or None."""
        x = self._values[node.args[0].name]
        residual = self._values[node.args[3].name] if len(node.args) > 3 and node.args[3] is not None else None
        return x, residual

    def _launch(self, node: Node) -> Tensor:
        y, (x, residual) = self._buffers[node.name], self._read(node)
        if not self._launches():
            return y.copy_(node.run(self._values))
        if node.name not in self._calls:
            module, arguments = kernel_and_arguments(node, self._values)
            call = module.prepare(y, arguments, self.choices.get(node.name, Choice()).config)
            self._calls[node.name] = kernels.dependent(call) if self.mode == DEPENDENT else call
        call = self._calls[node.name]
        moved = {"x": x} | ({"residual": x if residual is None else residual} if "residual" in call.tensors else {})
        kernels.launch(replace(call, tensors={**call.tensors, **moved}))  # PyTorch's results are in new memory on each run
        return y

    def _launch_all(self, first: Node) -> Tensor:
        if self._fused is None:
            self._fused = self._fuse()
        kernels.launch(self._fused)
        return self._buffers[first.name]

    def _fuse(self) -> kernels.Call:
        """All kernels as one call; only views are between them, which are taken once."""
        values = self._values | self._buffers
        calls = []
        for node in self.program.nodes:
            if node.target == "aten.reshape.default" and node.args[0].name in self._buffers:
                values[node.name] = node.run(values)
            if _is_kernel(node):
                module, arguments = kernel_and_arguments(node, values)
                calls.append(module.prepare(self._buffers[node.name], arguments, arguments.default(kernels.PERSISTENT_WARPS)))
        return kernels.fuse(calls)


def interpreting() -> bool:
    """Whether Triton's interpreter runs the kernels of this process."""
    from ltcompile.kernels import maxpool

    return kernels.interpreted(maxpool._maxpool)


def kernel_and_arguments(node: Node, values: Mapping[str, Any]) -> tuple[Any, Any]:
    """The module of the kernel that `node` calls, and its arguments with tensors from `values`."""
    module = kernels.load(node.target.removeprefix("kernel."))
    args, kwargs = node.filled(values)
    return module, module.Arguments(*args, **kwargs)

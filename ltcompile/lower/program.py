"""A network as data for one batch size: operations on named values. Passes rewrite it, engines run it, files hold it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from ltcompile.errors import InvalidModel
from ltcompile.graph.wrappers import unwrap
from ltcompile.lower import operations
from ltcompile.lower.trace import exported


@dataclass(frozen=True)
class Value:
    """The input, a constant or the output of a node, by name, as an argument of a node."""

    name: str


@dataclass(frozen=True)
class Node:
    """One operation; see `operations` for the targets. `args` and `kwargs` hold Values, numbers, strings, None and lists of these.

    `shape` is that of the output, () where there are several; `layer` the module that it was captured from.
    """

    name: str
    target: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    shape: tuple[int, ...]
    layer: str = ""

    @property
    def reads(self) -> tuple[str, ...]:
        """The names that it reads."""
        return tuple(_names([*self.args, *self.kwargs.values()]))

    def run(self, values: Mapping[str, Any]) -> Any:
        """Its output by PyTorch, for tensors by name."""
        args, kwargs = self.filled(values)
        return operations.find(self.target)(*args, **kwargs)

    def filled(self, values: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """(args, kwargs) for PyTorch, with `values` in place of their names, and types in place of theirs."""
        return _filled(list(self.args), values), _filled(dict(self.kwargs), values)

    def with_reads(self, names: Mapping[str, str]) -> Node:
        """The node with `names[n]` in place of each name n that it reads."""

        def renamed(value: Any) -> Any:
            return Value(names.get(value.name, value.name)) if isinstance(value, Value) else value

        return replace(self, args=tuple(mapped(a, renamed) for a in self.args), kwargs=mapped(dict(self.kwargs), renamed))


@dataclass(frozen=True)
class Program:
    """Nodes in the order in which they run, and the constants that they read. One tensor in, `output` out."""

    input: str
    nodes: tuple[Node, ...]
    output: str
    constants: Mapping[str, Tensor]
    input_shape: tuple[int, ...]

    @cached_property
    def users(self) -> dict[str, list[Node]]:
        """Name -> the nodes that read it, in order."""
        users: dict[str, list[Node]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(node.reads):
                users.setdefault(name, []).append(node)
        return users

    @cached_property
    def by_name(self) -> dict[str, Node]:
        return {node.name: node for node in self.nodes}

    def only_user(self, name: str) -> Node | None:
        """The node that reads `name`, if it is the only one and `name` is not the output."""
        users = self.users.get(name, [])
        return users[0] if len(users) == 1 and name != self.output else None

    def fused(self, gone: tuple[Node, ...], new: Node) -> Program:
        """The program with `new` in place of the last of `gone`, which has the same name, and without the others."""
        names = {node.name for node in gone}
        nodes = [new if node.name == new.name else node for node in self.nodes if node.name == new.name or node.name not in names]
        return replace(self, nodes=tuple(nodes))

    @torch.no_grad()
    def run(self, images: Tensor) -> Tensor:
        """The output for `images` by PyTorch, operation by operation: the definition of what the program computes."""
        values: dict[str, Any] = {self.input: images, **self.constants}
        for node in self.nodes:
            values[node.name] = node.run(values)
        out: Tensor = values[self.output]
        return out

    def module(self) -> nn.Module:
        """The program as a module for torch.compile, with its constants as buffers."""
        graph = torch.fx.Graph()
        made: dict[str, torch.fx.Node] = {self.input: graph.placeholder("images")}
        root = nn.Module()
        for at, (name, constant) in enumerate(self.constants.items()):
            root.register_buffer(f"constant{at}", constant)
            made[name] = graph.get_attr(f"constant{at}")
        for node in self.nodes:
            args, kwargs = node.filled(made)
            made[node.name] = graph.call_function(operations.find(node.target), tuple(args), kwargs)
        graph.output(made[self.output])
        return torch.fx.GraphModule(root, graph)


# A view needs the strides that exporting saw, and layouts change them.
_RESHAPES = dict.fromkeys(("aten.view.default", "aten._unsafe_view.default", "aten.flatten.using_ints"), "aten.reshape.default")
_FILLED = {"aten.new_zeros.default": 0, "aten.zeros_like.default": 0, "aten.new_ones.default": 1, "aten.ones_like.default": 1}


def capture(model: nn.Module, example: Tensor) -> Program:
    """`model` in eval mode as a program for batches of `example`'s size (N, C, H, W).

    Raises:
        InvalidModel: torch.export cannot trace it, it has several outputs, or it uses an operation that programs do not have.
    """
    traced = exported(unwrap(model), example).run_decompositions({})
    signature = traced.graph_signature
    stored = {**traced.state_dict, **traced.constants}
    targets = {**signature.inputs_to_parameters, **signature.inputs_to_buffers, **signature.inputs_to_lifted_tensor_constants}
    if len(signature.user_inputs) != 1 or len(signature.user_outputs) != 1:
        raise InvalidModel(
            f"only networks with one input and one output are lowered, not {len(signature.user_inputs)} and {len(signature.user_outputs)}"
        )
    known = {name: stored[target].detach() for name, target in targets.items()}
    nodes = tuple(_node(node) for node in traced.graph.nodes if node.op == "call_function" and not _computed(node, known))
    constants = {name: known[name] for node in nodes for name in node.reads if name in known}
    return Program(str(signature.user_inputs[0]), nodes, str(signature.user_outputs[0]), constants, tuple(example.shape))


@torch.no_grad()
def _computed(node: torch.fx.Node, known: dict[str, Any]) -> bool:
    """Whether `node` does not depend on the input; then its value is computed here and added to `known`."""
    fill, like = _FILLED.get(str(node.target)), node.meta.get("val")
    if fill is not None and isinstance(like, Tensor):
        known[node.name] = torch.full(like.shape, fill, dtype=like.dtype)
        return True
    if not node.users:  # an assertion
        return True
    if any(source.name not in known for source in node.all_input_nodes):
        return False
    args, kwargs = torch.fx.map_arg((node.args, node.kwargs), lambda source: known[source.name])
    known[node.name] = node.target(*args, **kwargs)  # type: ignore[operator]
    return True


def _node(node: torch.fx.Node) -> Node:
    target, layer = operations.name_of(node.target), _layer(node)
    if target is None:
        raise InvalidModel(f"{layer or 'the network'} uses {node.target}, which programs do not have")
    value = node.meta.get("val")
    target = _RESHAPES.get(target, target)
    shape = tuple(int(n) for n in value.shape) if isinstance(value, Tensor) else ()
    kwargs = {k: _plain(v) for k, v in node.kwargs.items() if k not in ("device", "layout", "pin_memory")}
    args = tuple(_plain(a) for a in node.args)
    if target == "aten.reshape.default":
        args = (args[0], list(shape))
    return Node(node.name, target, args, kwargs, shape, layer)


def _layer(node: torch.fx.Node) -> str:
    stack = node.meta.get("nn_module_stack") or {}
    return str(list(stack.values())[-1][0]) if stack else ""


def _plain(value: Any) -> Any:
    """An argument of a torch.fx node as plain data."""
    if isinstance(value, torch.fx.Node):
        return Value(value.name)
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if str(value) in operations.WORDS:
        return str(value)
    raise InvalidModel(f"programs hold numbers and tensors, not {value!r}")


def _names(value: Any) -> Iterator[str]:
    if isinstance(value, Value):
        yield value.name
    elif isinstance(value, (list, tuple)):
        for v in value:
            yield from _names(v)


def mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """An argument with `change` applied to everything in it that is not a list or dictionary."""
    if isinstance(value, dict):
        return {k: mapped(v, change) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [mapped(v, change) for v in value]
    return change(value)


def _filled(value: Any, values: Mapping[str, Any]) -> Any:
    """An argument for PyTorch, with `values` in place of their names, and types in place of theirs."""

    def fill(value: Any) -> Any:
        if isinstance(value, Value):
            return values[value.name]
        return operations.WORDS.get(value, value) if isinstance(value, str) else value

    return mapped(value, fill)

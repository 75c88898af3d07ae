"""LSTM, GRU and plain recurrent layers: what they read may shrink, their hidden state stays."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ltcompile.graph._labels import Dims
from ltcompile.graph.rules._call import Call, rule, tensors_in

HIDDEN = "it is the hidden state of a recurrent layer"


def recurrent_arguments(args: Any) -> dict[str, Any]:
    """The arguments of torch.lstm and its like by name: the second form, of packed sequences, has the sizes of batches behind the data."""
    at = next(i for i, value in enumerate(args) if isinstance(value, list))
    names = ("has_biases", "num_layers", "dropout", "train", "bidirectional")
    return {"input": args[0], "hx": args[at - 1], "params": args[at]} | dict(zip(names, args[at + 1 :], strict=False))


@rule("aten.lstm", "aten.gru", "aten.rnn_tanh", "aten.rnn_relu")
def _recurrent(call: Call) -> tuple[Dims, ...]:
    """x (..., I), for each layer and direction weights (gates H, I) and (gates H, H) and biases -> y (..., directions H) and states."""
    labels, x, params = call.labels, call["input"], call["params"]
    directions = 2 if call["bidirectional"] else 1
    firsts = params[: len(params) // int(call["num_layers"]) : len(params) // (int(call["num_layers"]) * directions)]
    read = labels[x][-1]
    for weight in firsts:
        read = labels.meet(x, read, weight, labels[weight][1])
        if not (labels.zero(x)[-1] or labels.zero(weight)[1]):
            labels.pin(read, "it is summed over in a product of which no factor is zero for a masked channel")
    for atoms in labels[x][:-1]:
        labels.pin(atoms, "it lies along the steps of a recurrent layer")
    first = {id(weight) for weight in firsts}
    for tensor in (*params, *tensors_in(call["hx"])):
        for atoms in labels[tensor][: 1 if id(tensor) in first else None]:
            labels.pin(atoms, HIDDEN)
    return tuple(_states(call, out) for out in tensors_in(call.out))


def _states(call: Call, out: Tensor) -> Dims:
    if not out.is_floating_point():
        return [None] * out.dim()
    atoms = call.labels.fresh(int(out.shape[-1]))
    call.labels.pin(atoms, HIDDEN)
    return [*[None] * (out.dim() - 1), atoms]

"""What a benchmark measures, as a `Pruned`: that itself, a ticket's, or that of an ONNX file of `shrink`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ltcompile.core.arm import Arm
from ltcompile.core.fields import short
from ltcompile.core.network_file import NetworkFile, described
from ltcompile.core.onnx_file import domains, external, read_onnx
from ltcompile.core.run_folder import RunFolder
from ltcompile.core.ticket import CLASSIFICATION, Ticket, check_model
from ltcompile.errors import InvalidFile, InvalidSetting, LtcompileError, TicketMismatch
from ltcompile.models import is_own_code
from ltcompile.pruned import Pruned, Source, named_network, pruned_of


@dataclass(frozen=True)
class Target:
    """A network to measure, and the ONNX file of `shrink` that holds it, if that is what is measured; `texts` are the file's.

    Of a file without its ticket, `pruned` has the dense network alone, as dense and as small one, and `file_data` is what the file says of its images.
    """

    name: str  # in results
    pruned: Pruned
    file: Path | None = None
    texts: Mapping[str, str] = field(default_factory=dict)
    small_is_known: bool = True
    dense_is_trained: bool = True
    file_data: Mapping[str, Any] | None = None

    @property
    def data(self) -> Mapping[str, Any] | None:
        """What a classifier was found on, as `Description.to_json` describes it; None of other networks."""
        return self.file_data or self.pruned.classified

    @property
    def file_holds_small(self) -> bool:
        """Whether the file has the weights of `pruned.small`: not fine-tuned or repaired ones, and the same batch-norm statistics."""
        fine_tuned = json.loads(self.texts.get("int8", "{}")).get("fine_tuned", False)
        return self.small_is_known and self.texts["recalibrated"] == "false" and not fine_tuned and "repaired" not in self.texts

    @property
    def described(self) -> NetworkFile | None:
        """What results call the file."""
        return None if self.file is None else described(self.file.name, self.file.read_bytes(), self.texts)


def open_target(target: Source, file: str | Path | None = None, model: str | None = None) -> Target:
    """What `target` is: the path of a ticket or of an ONNX file, or what `pruned_of` takes, with the ONNX `file` that was made of it.

    The dense network of a ticket's path has its trained weights where the run folder holds them.

    Raises:
        InvalidFile: it is not a file of ours. TicketMismatch: it does not fit, or needs code that `model` does not name.
        InvalidSetting: `file` or `model` is for something else.
    """
    if isinstance(target, str | Path):
        if file is not None:
            raise InvalidSetting("file= is a file of a Pruned; leave it out for tickets and files")
        path = Path(target)
        return _of_file(path, model) if path.suffix == ".onnx" else _of_ticket(Ticket.load(path), path, model)
    pruned = pruned_of(target, model)
    if file is None:
        return Target(type(pruned.small).__name__, pruned)
    texts, ticket = _texts(Path(file)), None if pruned.ticket is None else pruned.ticket.checksum
    if texts.get("network_checksum") != pruned.checksum and (ticket is None or texts.get("ticket_checksum") != ticket):
        raise TicketMismatch(f"{file} was not made of this network by `ltcompile shrink`; shrink it again, or name its weights and plan")
    return Target(Path(file).name, pruned, Path(file), texts)


def _of_ticket(ticket: Ticket, path: Path, model: str | None) -> Target:
    pruned = pruned_of(ticket, model)
    assert pruned.dense is not None
    return Target(path.name, pruned, dense_is_trained=_load_trained(pruned.dense, RunFolder(path.parent), Arm(ticket.seed, "dense", 0)))


def _load_trained(dense: nn.Module, run: RunFolder, arm: Arm) -> bool:
    """Give the dense network its trained weights, if the run folder has them."""
    if not run.training(arm).is_file():
        return False
    run.load_weights(dense, arm, "the dense network")
    return True


def _of_file(path: Path, model: str | None) -> Target:
    """An ONNX file of a ticket, with its ticket if that lies next to it."""
    texts = _texts(path)
    if texts.get("producer") != "ltcompile":
        raise InvalidFile(
            f"{path} was not made by `ltcompile shrink`, so its dense network is unknown; shrink a ticket, or bench the ticket itself"
        )
    if "ticket_checksum" not in texts:
        raise InvalidFile(
            f"{path} was made of a network without a ticket, so its dense network is unknown; name that network too, as in "
            f"`ltcompile bench {path} --model package.module:factory --plan plan.json --example SHAPES`, or use lt.bench(pruned, file=)"
        )
    neighbour = RunFolder(path.parent).ticket
    if neighbour.is_file() and (ticket := Ticket.load(neighbour)).checksum == texts["ticket_checksum"]:
        found = replace(_of_ticket(ticket, path, model), file=path, texts=texts)
        if isinstance(example := found.pruned.example, Tensor) and not _takes(path, example):
            raise InvalidFile(f"{path} takes other inputs than its ticket, {list(example.shape[1:])}; shrink the ticket again")
        return found
    if (task := texts.get("task", CLASSIFICATION)) != CLASSIFICATION:
        raise InvalidFile(f"{path} was made for {task} of a ticket that is not next to it; put both into one folder, or shrink again")
    return _of_file_alone(path, texts, model)


def _of_file_alone(path: Path, texts: Mapping[str, str], model: str | None) -> Target:
    """A classifier's file, whose texts name its dense network."""
    ends = read_onnx(path).graph
    try:
        shape = [d.dim_value for d in ends.input[0].type.tensor_type.shape.dim][1:]
        network = json.loads(texts["model"])
        data = {key: json.loads(texts[key]) for key in ("class_names", "mean", "std")}
        data |= {"name": texts["data"], "shape": shape, "interpolation": texts["interpolation"]}
        check_model(network, data)
    except LtcompileError as error:
        raise InvalidFile(f"{path} describes an impossible network: {error}; shrink the ticket again") from error
    except (KeyError, IndexError, ValueError, TypeError, RecursionError) as error:
        raise InvalidFile(f"{path} lacks what `ltcompile shrink` writes into its files ({error!r}); shrink the ticket again") from error
    if is_own_code(network["name"]) and model != network["name"]:
        raise TicketMismatch(f"the dense network is your own code; to run it, say so with --model {network['name']}")
    dense, example = named_network(network), torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    known = Pruned(
        dense,
        example,
        dense,
        input_names=(ends.input[0].name,),
        output_names=(ends.output[0].name,),
        provenance={"ticket_checksum": texts["ticket_checksum"]},
    )
    return Target(path.name, known, path, texts, small_is_known=False, dense_is_trained=False, file_data=data)


def _texts(path: Path) -> dict[str, str]:
    """The texts in an ONNX file. Raises InvalidFile where it reads other files or runs other code, or is no classifier though its ticket is for one."""
    model = read_onnx(path)
    texts = {p.key: p.value for p in model.metadata_props}
    if strange := _strange(model, texts):
        raise InvalidFile(f"{path} {strange}, as `ltcompile shrink` never writes it; shrink the ticket again")
    return texts


def _strange(model: Any, texts: Mapping[str, str]) -> str:
    """What there is in a file that `shrink` never writes; "" where nothing is."""
    if elsewhere := external(model):
        return f"keeps {elsewhere[0]!r} in another file"
    if foreign := domains(model) - {""}:
        return f"uses operators of its own ({short(foreign)})"
    ends = len(model.graph.input), len(model.graph.output)
    classifies = "ticket_checksum" in texts and texts.get("task", CLASSIFICATION) == CLASSIFICATION
    return "" if ends == (1, 1) or not classifies else f"has {ends[0]} inputs and {ends[1]} outputs"


def _takes(path: Path, example: Tensor) -> bool:
    """Whether a file of one input takes rows like those of `example`; sizes that vary are 0."""
    sizes = [d.dim_value for d in read_onnx(path).graph.input[0].type.tensor_type.shape.dim][1:]
    return len(sizes) == example.dim() - 1 and all(n in (0, m) for n, m in zip(sizes, example.shape[1:], strict=True))

"""A ticket to forge."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from readers import some_ticket

import ltcompile as lt


@pytest.fixture(scope="module")
def lenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ticket of a built-in network, untrained."""
    folder = tmp_path_factory.mktemp("lenet")
    torch.manual_seed(0)
    model = lt.build_model("lenet5", 2, 1, 16)
    plan = lt.plan(model, torch.zeros(2, 1, 16, 16))
    arguments = {"classes": 2, "in_channels": 1, "image_size": 16}
    changed = {"model": {"name": "lenet5", "arguments": arguments}, "plan": plan, "weights": lt.cut(model, plan).state_dict()}
    data = {**some_ticket().data, "shape": [1, 16, 16]}
    lt.Ticket(**{**vars(some_ticket()), **changed, "data": data}).save(folder / "ticket.pt")
    return folder / "ticket.pt"

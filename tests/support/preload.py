"""What every command imports, for the process that `commands` forks: it must have begun no thread when it is forked.

onnxruntime begins threads when it is imported, and openvino must come before torch: both are left to the commands.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import io
from unittest import mock

import torch
import tqdm
from quickly import sample_no_load, share_tables
from torch import nn

from ltcompile import registry
from ltcompile.cli import app
from ltcompile.lower.exporter import quiet

torch.set_num_threads(1)
share_tables()
sample_no_load()
gc.set_threshold(20_000)  # as in tests/conftest.py
tqdm.tqdm.monitor_interval = 0  # torch's exporter draws bars, and each bar would begin a thread that watches it

for module in ("torchvision", "sklearn.datasets", "plotly.graph_objects", "plotly.offline", "rich.table", "typer.rich_utils"):
    importlib.import_module(module)
for module in ("cli.progress", "benchmark.bench", "benchmark.sweep", "benchmark.profiling", "search", "reporting", "deploy", "lower.lower"):
    importlib.import_module(f"ltcompile.{module}")
for package in ("prune.criteria", "data", "deploy.formats", "search.methods", "models", "search.rewind"):
    registry.names(f"ltcompile.{package}")  # imports all of its modules

# The first export imports a thousand modules. It must not look for a GPU: forks could not use what their parent has touched. Nor may it
# run its file as `export_onnx` does, for that begins ONNX Runtime's threads.
with mock.patch("torch.cuda.is_available", return_value=False), quiet():
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).eval()
    torch.onnx.export(torch.export.export(network, (torch.zeros(2, 1, 2, 2),)), dynamo=True, verbose=False)
with contextlib.redirect_stdout(io.StringIO()):  # as the first use of typer does more
    app(["--version"], standalone_mode=False)

gc.freeze()  # a collection in a fork would touch, and so copy, all of this

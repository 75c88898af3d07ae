"""A network compiled for one machine: `compile` measures the candidates, `load_engine` loads a saved engine.

engine = lt.compile(small, images, device="cpu", batch=[1, 8, 64])
logits = engine(images)                     # any number of images
engine.save("small.engine")
engine = lt.load_engine("small.engine")     # without the model's code
"""

from __future__ import annotations

from ltcompile.engine.build import compile, load_engine
from ltcompile.engine.decision import Decision
from ltcompile.engine.engine import Engine

__all__ = ["Decision", "Engine", "compile", "load_engine"]

"""Recovery of a cut network without labels."""

from ltcompile.recovery._repair import repair
from ltcompile.recovery._report import LayerRepair, RepairReport

__all__ = ["LayerRepair", "RepairReport", "repair"]

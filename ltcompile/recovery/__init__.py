"""Recovery of a cut network without labels and without training."""

from ltcompile.recovery._repair import LayerRepair, RepairReport, repair

__all__ = ["LayerRepair", "RepairReport", "repair"]

"""From a trained module to a file that deploys: fold, export, check."""

from ltcompile.lower.export import export_onnx, export_program, run_onnx
from ltcompile.lower.fold import fold_batch_norm
from ltcompile.lower.simulate import HalfInside

__all__ = ["HalfInside", "export_onnx", "export_program", "fold_batch_norm", "run_onnx"]

"""Verification of claims on the target machine with ONNX Runtime and numpy alone: nothing here imports torch or onnx."""

from __future__ import annotations

from ltcompile.verification.checks import verify
from ltcompile.verification.claims import Claims, read_claims
from ltcompile.verification.result import Check, Value, Verified

__all__ = ["Check", "Claims", "Value", "Verified", "read_claims", "verify"]

"""Backends: implementations of one contract, chosen by the device of the parameters."""

from sfplus_kernels.backends.registry import names, report, select

__all__ = ["names", "report", "select"]

"""The only door to the compiled extension: this module cannot be imported where it was not built."""

import torch

import sfplus_kernels._C as _C

DTYPES = {torch.float64: 0, torch.float32: 1, torch.bfloat16: 2, torch.float16: 3}
"""As ``DType`` in csrc/math/dtypes.h."""

__all__ = ["DTYPES", "_C"]

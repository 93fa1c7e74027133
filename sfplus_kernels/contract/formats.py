"""Which buffers a parameter may have in its state, and their dtypes."""

from __future__ import annotations

import torch

FLOAT_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
"""Of parameters and gradients."""

ALGORITHM_BUFFERS = ("exp_avg", "exp_avg_sq", "displacement")
"""Those that an algorithm may ask for."""

BUFFERS = (*ALGORITHM_BUFFERS, "master_param")
"""All buffers of a parameter's shape, under their names in its state and in ``contract.backend.Entry``."""

STEP = "step"
"""The count of a parameter's steps: all in its state that has not its shape."""


def state_dtype(param_dtype: torch.dtype) -> torch.dtype:
    """dtype of a parameter's state and of the arithmetic on it: float64 for float64, else float32."""
    return torch.float64 if param_dtype == torch.float64 else torch.float32


def needs_master(param_dtype: torch.dtype) -> bool:
    """Whether y is kept in a float32 ``master_param`` because the parameter itself is too coarse."""
    return param_dtype != state_dtype(param_dtype)

"""AdamW (arXiv 1711.05101), without averaging."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sfplus_kernels.core.plain_adam import PlainAdam


class AdamW(PlainAdam):
    r"""``torch.optim.AdamW`` on this package's kernels: the same arguments, the same weights to rounding.

    What the Schedule-Free classes are compared with: it wants a learning-rate schedule. Nothing is averaged,
    and there is nothing to switch: ``train()`` and ``eval()`` do nothing. One step moves 28 bytes per float32
    parameter and keeps 8 bytes of state.

    Args:
        params: parameters or groups; float64, float32, bfloat16 or float16, all on one device. bfloat16
            and float16 ones get a float32 ``master_param`` that holds the weight.
        lr: learning rate, at least 0; may be a 0-dim tensor.
        betas: decays of the two moments, in [0, 1).
        eps: added to the denominator, above 0.
        weight_decay: decoupled coefficient, multiplied by the learning rate.
        amsgrad, differentiable: only False; there are no kernels for them.
        maximize: ascend.
        foreach, capturable, fused: accepted for torch's sake; have no effect.
        max_grad_norm: clip to this L2 norm over all gradients, as ``torch.nn.utils.clip_grad_norm_``
            does, but without writing them; None is off. Looks at all gradients first, as the next one.
        skip_nonfinite: look at all gradients first (4 bytes more of traffic per parameter), and let a
            step with a NaN, an Inf or an overflowing sum of squares in them change nothing but
            ``metrics()["skipped_steps"]``.
        process_group, shard_group: with whom the look at the gradients is shared, as in
            ``AdamCScheduleFreePlus``.
        row_norm: the L2 norm that each row of these weights is brought to at every step: a row of a parameter
            with two or more dimensions is ``p[i]``, all that belongs to one output. None leaves them alone.
        state_format: "float32", "16bit" for half the state, or "8bit" for about a quarter (docs/memory.md);
            that of float16 parameters stays in float32.
        rounding_seed: of the roundings by chance of these, 0 to 4294967295; the same in all processes.
        backend: "cpu", "cuda", "triton" or "eager"; None takes ``SFPLUS_BACKEND`` or the best available.

    Raises:
        TypeError, ValueError: a hyperparameter out of range, unusable parameters, an unknown backend.
        RuntimeError: the named backend is unavailable; the message says why.

    State dicts of ``torch.optim.AdamW`` are loaded, and it loads those of ``to_upstream_state_dict()``.
    """

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        max_grad_norm: float | None = None,
        skip_nonfinite: bool = False,
        process_group: Any = None,
        shard_group: Any = None,
        row_norm: float | None = None,
        state_format: str = "float32",
        rounding_seed: int = 0,
        backend: str | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
            "maximize": maximize,
            "foreach": foreach,
            "capturable": capturable,
            "differentiable": differentiable,
            "fused": fused,
            "max_grad_norm": max_grad_norm,
            "skip_nonfinite": skip_nonfinite,
            "row_norm": row_norm,
            "state_format": state_format,
            "rounding_seed": rounding_seed,
        }
        super().__init__(
            params, defaults, backend, process_group=process_group, shard_group=shard_group
        )

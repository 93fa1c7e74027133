"""DeepSpeed, ZeRO stages 0 to 2: modes that reach the model, the loss of a step, clipping.

engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
prepare(engine)
train(engine)
...
loss = engine(batch)
report_loss(engine, loss)
engine.backward(loss)
engine.step()
...
eval(engine)  # validate, and save
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sfplus_kernels import optim
from sfplus_kernels.integrations.clipping import take_over_clipping
from sfplus_kernels.integrations.follow import follow
from sfplus_kernels.optim import unwrap


def prepare(engine: Any) -> None:
    """Set up the optimizer within ``engine`` for the way in which ZeRO divides and clips.

    Under ZeRO-1 and 2 the sums of a step are those of all ranks, each of which holds a part
    (``shard_group``). The engine's clipping becomes the optimizer's ``max_grad_norm``. Without ZeRO the model
    is followed (``follow``); with it the engine's optimizer gets the ``train()`` and ``eval()`` of this
    module, which trainers call.

    Raises:
        ValueError: ZeRO-3; more than one parameter group for ScheduleFree+, which ZeRO steps one by one.
    """
    inner, stage = unwrap(engine), engine.zero_optimization_stage()
    if stage > 2:
        raise ValueError(
            f"ZeRO stage {stage} is not supported: its parameters are gathered and freed around each use; "
            "take stage 1 or 2, or FSDP2"
        )
    if stage > 0 and inner.needs_loss and len(inner.param_groups) > 1:
        raise ValueError(
            f"ScheduleFree+ has {len(inner.param_groups)} parameter groups, which ZeRO steps one after the "
            "other, where one step size for all is impossible; make one group, such as "
            "AdamCScheduleFreePlus(model.parameters())"
        )
    if stage > 0 and inner.shard_group is None:
        inner.shard_group = engine.optimizer.dp_process_group
    if take_over_clipping(inner, engine.gradient_clipping()):
        engine.optimizer.clip_grad = 0.0  # ZeRO's own, and that of mixed precision
        engine._config.gradient_clipping = 0.0  # without either the engine clips
    if stage == 0:
        follow(engine.module, inner)
    else:
        engine.optimizer.train = lambda: train(engine)
        engine.optimizer.eval = lambda: eval(engine)


def train(engine: Any) -> None:
    """y into the model, where gradients are taken. Costs nothing in train mode."""
    _set_mode(engine, train=True)


def eval(engine: Any) -> None:
    """x, the average, into the model: evaluate and save it. Costs nothing in eval mode."""
    _set_mode(engine, train=False)


def report_loss(engine: Any, loss: float | Tensor, weight: float | Tensor = 1.0) -> None:
    """``sfplus_kernels.report_loss`` into the engine.

    Args:
        loss: of the micro-batch, undivided, as ``engine.backward`` takes it.
        weight: its share; only the ratios count.
    """
    optim.report_loss(engine, loss, weight)


def _set_mode(engine: Any, *, train: bool) -> None:
    inner = unwrap(engine)
    if inner.param_groups[0].get("train_mode") is train:
        return
    inner.train() if train else inner.eval()
    # ZeRO's optimizer has moved this rank's flat part in full precision only: the model's weights are others
    refresh = getattr(engine.optimizer, "update_lp_params", None)
    if refresh is not None:
        refresh()

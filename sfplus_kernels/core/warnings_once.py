"""All warnings of this package: what each says, and that it is said once.

Each has a name, which stands in its text, so that Python's own filters can choose:

    warnings.filterwarnings("error", category=sfplus_kernels.SFPlusWarning)
    warnings.filterwarnings("ignore", r"sfplus_kernels \\[gamma\\]")
"""

from __future__ import annotations

import sys
import warnings
from weakref import WeakKeyDictionary


class SFPlusWarning(UserWarning):
    """Something is allowed, but is hardly what was meant; the text says what to do."""


TEXTS = {
    "gamma": (
        "gamma, the size of a step, was {gamma:.3g} at step {k} or before; where training goes well it is "
        "0.001 to 0.1. Either the loss is not the one that backward() was called on (a GradScaler's scaled "
        "one, a sum over batches), or the gradients were clipped before step() (clip with max_grad_norm, or "
        "tell step() the clip_coef), or lr is too large for this model (as with a frozen backbone): set "
        "max_lr to the peak learning rate that AdamW would have, or divide lr by 3"
    ),
    "gamma-jump": (
        "the Polyak step size, which gamma is proportional to, is {now:.3g} at step {k} and was {early:.3g} "
        "in the early steps; in runs that go well it does not grow so. Is the loss still the one that "
        "backward() was called on, unscaled, and are the gradients unclipped (clip with max_grad_norm, or "
        "tell step() the clip_coef)? If so, lr is too large: set max_lr to the peak learning rate that AdamW "
        "would have, or divide lr by 3"
    ),
    "gamma-zero": (
        "gamma, the size of a step, was 0 at every look for {steps} steps: nothing trains. Either the loss "
        "is below f_star (default 0), the loss that cannot be beaten: set f_star below every loss that can "
        "come, as for a negative loss. Or it is only a part of the one that backward() was called on"
    ),
    "decay": (
        "gamma squared times weight_decay ({decay:g}) was {share:.3g}, the part of the weights that a "
        "step of decay takes away; where training goes well it is 0.03 at most, and above 1 they are thrown "
        "to the other side of 0. Divide weight_decay, or lower max_lr, or lr, which gamma is proportional to"
    ),
    "decay-at-lr": (
        "lr times weight_decay is {share:.3g} (lr {lr:g}, weight_decay {decay:g}), the part of the weights "
        "that one step of decay takes away; where training goes well it is 0.03 at most, and above 1 the "
        "weights are thrown to the other side of 0. Divide weight_decay, or lr"
    ),
    "skipped": (
        "{steps} steps in a row were skipped, because a loss or a gradient is NaN or Inf: nothing trains. "
        "metrics() has the loss and the norms that caused it"
    ),
    "clipped": (
        "the gradient's norm was {norm:.3g} in three steps: it seems to be clipped before step(). That makes "
        "gamma, the size of a step, larger, since the loss is not clipped. Take clipping out of the loop or "
        "the trainer, and pass max_grad_norm={norm:.3g} to the optimizer, or tell step() the clip_coef"
    ),
    "scheduler": (
        "lr was lowered from {before:.3g} to {now:.3g}, as a scheduler does. Schedule-Free wants it "
        "constant: its average takes the place of the decay. Use no scheduler (or a constant one: trainers "
        "often make another by default); for a warmup set the optimizer's warmup_steps"
    ),
    "other-mode": (
        "the optimizer was saved in {mode} mode, but the weights that were loaded into the model are those "
        "of the other mode (in train mode they are y, in eval mode and in averaged_state_dict() x). To go on "
        "with a run, save model.state_dict() and optimizer.state_dict() in one mode, and load both"
    ),
    "graph": (
        "a step of this optimizer was captured into a CUDA graph, and its groups or its state have since "
        "become others, as by load_state_dict() or add_param_group(): a replay would read and write what is "
        "the optimizer's no longer. Run one step, and capture the graph again"
    ),
    "eager": (
        "the steps run on the backend 'eager', plain torch operations, on {device}, though that has a "
        "quicker one: {reasons}. To do so on purpose, pass backend='eager'"
    ),
}
"""By name: what is the case, and what to do about it; with places for values, as ``str.format`` wants."""

_said: WeakKeyDictionary[object, set[str]] = WeakKeyDictionary()


def warn_once(owner: object, name: str, **values: object) -> None:
    """Give the warning ``name``, unless it was given for ``owner`` before.

    Must not wait for the device: the values are numbers that are on the host anyway.

    Args:
        owner: mostly the optimizer; SFPlusWarning itself for what concerns the whole process.
        values: what the text has places for.
    """
    said = _said.setdefault(owner, set())
    if name in said:
        return
    said.add(name)  # first: where warnings are errors the next call must go on
    frame, level = sys._getframe(), 1
    while frame.f_back is not None and _inside(frame.f_globals.get("__name__", "")):
        frame, level = frame.f_back, level + 1
    text = f"sfplus_kernels [{name}]: {TEXTS[name].format(**values)}"
    warnings.warn(text, SFPlusWarning, stacklevel=level)


def _inside(module: str) -> bool:
    """Whether a line of it would tell a user nothing."""
    return module.partition(".")[0] in ("sfplus_kernels", "torch", "contextlib")

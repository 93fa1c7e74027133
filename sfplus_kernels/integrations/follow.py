"""y in training forwards, x in evaluation forwards and in whatever is saved: by the model's own hooks."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from sfplus_kernels.compiling.tracing import untraced
from sfplus_kernels.optim import unwrap


def follow(model: nn.Module, optimizer: Any) -> Follower:
    """Let the parameters follow the mode of ``model``; nobody then calls ``optimizer.train()`` or ``eval()``.

    - Before a forward pass with gradients in training mode the parameters become y, before one in evaluation
      mode x. In training mode without gradients (``update_bn``) they stay what they are.
    - Before ``model.state_dict()`` and ``optimizer.state_dict()`` they become x, so what is saved is x, and
      model and optimizer are saved in the same mode. The optimizer's groups are saved with ``param_names``.
    - Before ``model.load_state_dict()`` they become x, unless the optimizer has just been loaded, which says
      what they are.
    - Before ``optimizer.step()`` they become y; RuntimeError if its gradients were taken at x.

    It costs nothing while the mode stays. A resumed run is bit for bit the one that saved and went on.

    Args:
        model: the module whose forward is called, after ``fully_shard``. What wraps it later (DDP,
            ``torch.compile``) may; copies of it (EMA models) and pickles are not followed. A model that an
            earlier optimizer with the same parameters was to follow no longer does.
        optimizer: a Schedule-Free optimizer, or a trainer's wrapper around one. With one that averages
            nothing the parameters stay what they are.

    Returns:
        A handle whose ``remove()`` takes the hooks away.

    Raises:
        TypeError: an optimizer that has no two modes.
        ValueError: one that has none of the model's parameters.

    With several processes save on all of them, or call ``optimizer.eval()`` on all before one saves: a change
    of mode rounds, and replicas must round together.
    """
    inner = unwrap(optimizer)
    if not (hasattr(inner, "train") and hasattr(inner, "eval")):
        raise TypeError(
            f"follow got a {type(inner).__name__}, which has no train() and eval(); expected a "
            "Schedule-Free optimizer, or a wrapper around one"
        )
    if not _parameters_of(inner) & {id(p) for p in model.parameters()}:
        raise ValueError(
            f"follow got a {type(inner).__name__} that has none of this {type(model).__name__}'s parameters; "
            "expected the optimizer of this very model, not of a copy. Under DeepSpeed's ZeRO it has flat "
            "pieces of them: use sfplus_kernels.integrations.deepspeed"
        )
    for earlier in [f for f in _followers.get(model, ()) if f.shares_parameters(inner)]:
        earlier.remove()
    follower = Follower(model, inner)
    _followers.setdefault(model, []).append(follower)
    return follower


class Follower:
    """The hooks of ``follow``, and what they remember from one call to the next."""

    def __init__(self, model: nn.Module, optimizer: Any) -> None:
        # both weak: a model that outlives its optimizer follows nobody
        self._model = weakref.ref(model)
        self._optimizer = weakref.ref(optimizer)
        self._last_forward: bool | None = None  # whether it was one of training
        self._at_x = self._at_y = False  # whether gradients were taken there since the last step
        self._just_loaded = False  # the optimizer; the model may be loaded next
        forward, state, step = Hook(self._forward), Hook(self._put_x), Hook(self._step)
        self._handles = [
            model.register_forward_pre_hook(forward, prepend=True),  # before FSDP2's, which gathers
            model.register_state_dict_pre_hook(state),
            model.register_load_state_dict_pre_hook(Hook(self._load_model)),
            optimizer.register_state_dict_pre_hook(state),
            optimizer.register_state_dict_post_hook(Hook(self._name)),
            optimizer.register_load_state_dict_post_hook(Hook(self._loaded)),
            optimizer.register_step_pre_hook(step),
        ]

    def remove(self) -> None:
        """Take the hooks away; the parameters stay what they are."""
        for handle in self._handles:
            handle.remove()
        model = self._model()
        if model is not None and self in _followers.get(model, ()):
            _followers[model].remove(self)

    def shares_parameters(self, optimizer: Any) -> bool:
        """Whether a parameter belongs to both optimizers; True if ours is gone."""
        own = self._optimizer()
        return own is None or bool(_parameters_of(own) & _parameters_of(optimizer))

    # -- the hooks ------------------------------------------------------------------------------------

    def _both(self, owner: Any) -> tuple[nn.Module, Any] | None:
        """Model and optimizer, if both live and ``owner`` is one of them, not a copy with the same hook."""
        model, optimizer = self._model(), self._optimizer()
        known = (
            model is not None and optimizer is not None and (owner is model or owner is optimizer)
        )
        return (model, optimizer) if known else None  # type: ignore[return-value]

    def _forward(self, owner: Any, *_: Any) -> None:
        both = self._both(owner)
        if both is None:
            return
        model, optimizer = both
        learning = torch.is_grad_enabled()
        if model.training and not learning:
            _reshard(model)
            self._last_forward = None
            return
        if model.training:
            optimizer.train()
            self._at_y = True
        else:
            optimizer.eval()
            self._at_x |= learning
        if self._last_forward is not model.training:
            _reshard(model)
        self._last_forward, self._just_loaded = model.training, False

    def _step(self, owner: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        both = self._both(owner)
        if both is None:
            return
        closure = kwargs.get(
            "closure", args[1] if len(args) > 1 else None
        )  # args[0] is the optimizer
        averages = getattr(both[1], "has_modes", True)
        if closure is None and averages and self._at_x and not self._at_y:
            raise RuntimeError(
                "step() after a forward pass in evaluation mode: its gradients were taken at x and belong "
                "to y; call model.train() before training (and then eval() of those parts alone that are "
                "to behave as in evaluation, such as a frozen BatchNorm)"
            )
        if not self._at_y and closure is None and _all_lr_zero(both[1]):
            return  # so loaders of checkpoints have the state made, which is not to count as a step
        self._at_x = self._at_y = self._just_loaded = False
        both[1].train()

    def _put_x(self, owner: Any, *_: Any) -> None:
        both = self._both(owner)
        if both is not None:
            both[1].eval()

    def _load_model(self, owner: Any, *_: Any) -> None:
        if not self._just_loaded:
            self._put_x(owner)
        self._just_loaded = False

    def _loaded(self, owner: Any) -> None:
        self._just_loaded = self._both(owner) is not None

    def _name(self, owner: Any, state_dict: dict[str, Any]) -> None:
        both = self._both(owner)
        if both is None:
            return
        model, optimizer = both
        _reshard(model)  # while a module is whole, its parameters are others
        names = {id(param): name for name, param in model.named_parameters()}
        for group, saved in zip(optimizer.param_groups, state_dict["param_groups"], strict=True):
            if all(id(param) in names for param in group["params"]):
                saved["param_names"] = [names[id(param)] for param in group["params"]]


class Hook:
    """A method of a follower on a module or an optimizer; copies and pickles of it do nothing."""

    def __init__(self, act: Callable[..., None] | None = None) -> None:
        self._act = act

    @untraced
    def __call__(self, *args: Any) -> None:
        """What the method does."""
        if self._act is not None:
            self._act(*args)

    def __deepcopy__(self, _: Any) -> Hook:
        return Hook()

    def __reduce__(self) -> tuple:
        return Hook, ()


_followers: weakref.WeakKeyDictionary[nn.Module, list[Follower]] = weakref.WeakKeyDictionary()


def _parameters_of(optimizer: Any) -> set[int]:
    return {id(p) for group in optimizer.param_groups for p in group["params"]}


def _all_lr_zero(optimizer: Any) -> bool:
    rates = [group["lr"] for group in optimizer.param_groups]
    return all(float(lr) == 0 for lr in rates if not _on_device(lr)) and not any(
        map(_on_device, rates)
    )


def _on_device(lr: Any) -> bool:
    return isinstance(lr, torch.Tensor) and lr.device.type != "cpu"


def _reshard(model: nn.Module) -> None:
    """Free the whole weights that FSDP2 kept after a forward pass: they are those of another mode."""
    fsdp = sys.modules.get("torch.distributed.fsdp")  # a model cannot be sharded without it
    if fsdp is not None:
        for module in model.modules():
            if isinstance(module, fsdp.FSDPModule):
                module.reshard()

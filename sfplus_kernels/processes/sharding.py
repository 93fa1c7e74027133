"""DTensors: what this process holds of a tensor, and among how many processes the whole is divided.

Known by their attributes, so that ``torch.distributed.tensor`` is imported only by those who use it. What a
process holds is a plain tensor; ``to_local()`` would make a new one of a parameter at each call, at some
microseconds each, so it is taken from where DTensor keeps it.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import NoneType
from typing import Any

from torch import Size, Tensor, nn

PLAIN = frozenset({Tensor, nn.Parameter, NoneType})
"""What is certainly no DTensor: a look at each type is all that other models pay."""

FAR_APART = 0x9E3779B1
"""The first elements of two parts are so far from each other where their true distance is not known."""


def is_dtensor(tensor: Tensor) -> bool:
    """Whether ``tensor`` is a DTensor."""
    return hasattr(tensor, "_local_tensor")


def local(tensor: Tensor) -> Tensor:
    """What this process holds of ``tensor``: a plain tensor on the same memory."""
    part: Any = getattr(tensor, "_local_tensor", tensor)
    if hasattr(part, "trigger_wait"):  # the result of a collective that nobody has used yet
        part = part.wait()
    return part  # type: ignore[no-any-return]


def local_parts(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    """``local`` of each."""
    if PLAIN.issuperset(map(type, tensors)):
        return tensors
    parts = [getattr(tensor, "_local_tensor", tensor) for tensor in tensors]
    return parts if PLAIN.issuperset(map(type, parts)) else [local(tensor) for tensor in tensors]


def local_gradients(params: Sequence[Tensor]) -> list[Tensor | None]:
    """``local_gradient`` of each that has one."""
    gradients = [param.grad for param in params]
    if PLAIN.issuperset(map(type, params)) and PLAIN.issuperset(map(type, gradients)):
        return gradients
    return [
        None if grad is None else local_gradient(param, grad)
        for param, grad in zip(params, gradients, strict=True)
    ]


def as_part_of(part: Tensor, whole: Tensor, shape: tuple[int, int] | None = None) -> Tensor:
    """``part`` as what this process holds of a tensor that is divided as ``whole`` is; or just ``part``.

    Args:
        shape: of that tensor, if it is not that of ``whole``.
    """
    if not is_dtensor(whole):
        return part
    from torch.distributed.tensor import DTensor

    like: Any = whole
    return DTensor.from_local(
        part,
        like.device_mesh,
        like.placements,
        run_check=False,
        shape=whole.shape if shape is None else Size(shape),
        stride=whole.stride() if shape is None else (shape[1], 1),
    )


def rows_in_blocks(param: Tensor, block: int) -> bool:
    """Whether dimension 0 has rows of whole blocks, in the whole tensor and in what each process holds.

    The answer is the same in all processes.
    """
    if param.dim() < 2 or param.shape[1:].numel() % block:
        return False
    pieces = 1  # of a row
    if is_dtensor(param):
        like: Any = param
        for size, placement in zip(like.device_mesh.shape, like.placements, strict=True):
            dim = getattr(placement, "dim", 0)  # a replica has none
            if dim > 1:
                return False
            pieces *= size if dim == 1 else 1
    width, within = param.shape[1], param.shape[2:].numel()
    return width % pieces == 0 and width // pieces * within % block == 0


def cuts_rows(param: Tensor) -> bool:
    """Whether processes hold parts of its rows, those of dimension 0."""
    if not is_dtensor(param):
        return False
    like: Any = param
    pairs = zip(like.device_mesh.shape, like.placements, strict=True)
    return any(size > 1 and getattr(placement, "dim", 0) != 0 for size, placement in pairs)


def shards(param: Tensor) -> int:
    """Among how many processes the elements of ``param`` are divided: 1 where each holds all of them."""
    count = 1
    if is_dtensor(param):
        like: Any = param
        for size, placement in zip(like.device_mesh.shape, like.placements, strict=True):
            count *= 1 if placement.is_replicate() else size
    return count


def holds_sums(tensor: Tensor) -> bool:
    """Whether ``tensor`` is a DTensor of which the processes hold terms that are still to be added up."""
    like: Any = tensor
    return is_dtensor(tensor) and any(placement.is_partial() for placement in like.placements)


def local_gradient(param: Tensor, grad: Tensor) -> Tensor:
    """What this process holds of ``grad``, divided as ``param`` is.

    A gradient that is divided in another way, or that is still to be added up (as those of a norm under
    sequence parallelism), is redistributed, which all processes of its mesh must do.

    Raises:
        TypeError: one of the two is a DTensor and the other is not.
        ValueError: they are on different meshes.
    """
    spec, other = getattr(param, "_spec", None), getattr(grad, "_spec", None)
    if spec is other:
        return local(grad)
    if spec is None or other is None:
        kinds = [f"a {'plain tensor' if s is None else 'DTensor'}" for s in (spec, other)]
        raise TypeError(
            f"a parameter of shape {tuple(param.shape)} is {kinds[0]}, and its gradient {kinds[1]}; was the "
            "parameter replaced after backward()? Call zero_grad() and run backward() again"
        )
    if spec.mesh is not other.mesh and spec.mesh != other.mesh:
        raise ValueError(
            f"a parameter of shape {tuple(param.shape)} is on {spec.mesh}, its gradient on "
            f"{other.mesh}; expected the same mesh"
        )
    if spec.placements != other.placements:
        redistributed: Any = grad
        grad = redistributed.redistribute(placements=spec.placements)
    return local(grad)


def plain(value: Any) -> Any:
    """``value``, or all of it if it is a DTensor: a loss under tensor parallelism, the norm of all gradients.

    If its processes hold different parts or terms, all of them must take part.
    """
    if not (isinstance(value, Tensor) and is_dtensor(value)):
        return value
    like: Any = value
    return local(value) if shards(value) == 1 and not holds_sums(value) else like.full_tensor()


def placed_as(value: Tensor, param: Tensor) -> Tensor:
    """What this process holds of ``value`` once it is divided as ``param`` is.

    ``value`` may be a DTensor, divided in any way, or a plain tensor with all elements; its shape that of
    ``param``, or another that is to be divided alike. If it is not placed as ``param`` already, all processes
    of its mesh must take part.
    """
    like: Any = param
    if is_dtensor(value):
        found: Any = value
        if not is_dtensor(param):
            return found.full_tensor()  # type: ignore[no-any-return]
        if found.device_mesh != like.device_mesh:
            value = found.full_tensor()
        elif found.placements != like.placements:
            value = found.redistribute(placements=like.placements)
    if is_dtensor(value):
        return local(value)
    if is_dtensor(param):
        from torch.distributed.tensor import distribute_tensor

        whole = value.detach().to(like.device_mesh.device_type)
        return local(distribute_tensor(whole, like.device_mesh, like.placements))
    return value


def part_of_whole(param: Tensor, rank: int) -> tuple[int, int, int] | None:
    """Which elements of the whole tensor this process holds: (start, run, stride), as in ``layout.Row``.

    Elements are counted in the order of memory. None where this process holds all of them.

    Args:
        rank: of this process among those that plain tensors are divided among. How, is not known, so each
            begins at a number of its own, as it does where the parts are no runs at one distance.
    """
    if not is_dtensor(param):
        return (rank * FAR_APART % 2**32, max(param.numel(), 1), 0) if rank else None
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    like: Any = param
    held = local(param).shape
    _, offset = compute_local_shape_and_global_offset(
        param.shape, like.device_mesh, like.placements
    )
    cut = [d for d, (own, size) in enumerate(zip(held, param.shape, strict=True)) if own != size]
    numel = max(held.numel(), 1)
    beside = rank * FAR_APART
    if not cut:
        return (beside % 2**32, numel, 0) if beside else None
    last = cut[-1]
    within = param.shape[last + 1 :].numel()
    start = offset[last] * within
    stride = param.shape[last] * within
    if last == 0:
        return (start + beside) % 2**32, numel, 0
    if cut[:-1] not in ([], [0]):
        place = sum(o * param.shape[d + 1 :].numel() for d, o in enumerate(offset))
        return (place * FAR_APART + beside) % 2**32, numel, 0
    if len(cut) == 2:  # rows of it, too
        start += offset[0] * param.shape[1:].numel()
    return (start + beside) % 2**32, max(held[last] * within, 1), stride

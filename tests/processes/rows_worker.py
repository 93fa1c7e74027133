"""What each process of the tests does whose state is of classes that average nothing, or whose rows have a
fixed norm; ``ranks.py`` starts it."""

from collections.abc import Callable
from typing import Any

from formats_worker import DTYPES, PLACEMENTS, averaged, trained
from torch.distributed.device_mesh import init_device_mesh

from sfplus_kernels import SGD, AdamC, AdamW, SGDScheduleFree

Make = Callable[[list[Any], str], Any]
COMMON: dict[str, Any] = {"lr": 0.02, "weight_decay": 0.1, "rounding_seed": 3}


def adamw(params: list[Any], state_format: str) -> Any:
    return AdamW(params, state_format=state_format, **COMMON)


def adamc(params: list[Any], state_format: str) -> Any:
    return AdamC(params, max_lr=0.05, state_format=state_format, **COMMON)


def sgd(params: list[Any], state_format: str) -> Any:
    more = {
        key: value for key, value in COMMON.items() if key != "rounding_seed"
    }  # nothing by chance
    return SGD(params, momentum=0.9, nesterov=True, state_format=state_format, **more)


PLAIN: dict[str, Make] = {"adamw": adamw, "adamc": adamc, "sgd": sgd}


def rows_of(make: Make) -> Make:
    """The same, but the rows of matrices have a fixed norm."""

    def made(params: list[Any], state_format: str) -> Any:
        optimizer = make(params, state_format)
        matrices, rest = (
            [p for p in params if (p.dim() > 1) == wanted] for wanted in (True, False)
        )
        (group,) = optimizer.param_groups
        group["params"] = rest
        optimizer.add_param_group({**group, "params": matrices, "row_norm": 2.0})
        return optimizer

    return made


def sgd_averaged(params: list[Any], state_format: str) -> Any:
    return SGDScheduleFree(params, momentum=0.9, state_format=state_format, **COMMON)


ROWS: dict[str, Make] = {
    "averaged": rows_of(averaged),
    "sgd, averaged": rows_of(sgd_averaged),
    "adamw": rows_of(adamw),
}
CASES: dict[str, tuple[str, str, str, Make]] = {
    f"{what}, {state_format}, {kind}, {name}": (state_format, kind, name, make)
    for makes, formats, kinds in (
        (PLAIN, ("16bit", "8bit"), ("rows", "columns", "rows and columns", "rows in replicas")),
        (
            {f"rows of {what}": make for what, make in ROWS.items()},
            ("float32", "16bit", "8bit"),
            ("rows", "replicas", "rows in replicas"),
        ),
    )
    for what, make in makes.items()
    for state_format in formats
    for kind in kinds
    for name in DTYPES
}


def divided(rank: int, world: int) -> dict[str, Any]:
    flat = init_device_mesh("cpu", (world,))
    grid = init_device_mesh("cpu", (2, world // 2))
    found = {}
    for case, (state_format, kind, name, make) in CASES.items():
        placements = PLACEMENTS[kind]
        mesh = flat if len(placements) == 1 else grid
        found[case] = trained(state_format, DTYPES[name], mesh, placements, make)
    return found


def refused(rank: int, world: int) -> dict[str, str]:
    """Rows that are cut."""
    flat = init_device_mesh("cpu", (world,))
    found = {}
    for state_format in ("float32", "16bit", "8bit"):
        try:
            trained(state_format, DTYPES["bfloat16"], flat, PLACEMENTS["columns"], ROWS["averaged"])
        except ValueError as error:
            found[state_format] = str(error)
    return found


SCENARIOS = [divided, refused]

"""What the Triton compiler makes of the kernels: which there are, what is compiled in, how they round."""

from __future__ import annotations

import re

import pytest
from triton_binary import ACCESS, BITS, Kernels, Target, named, state_bits

from sfplus_kernels.contract.layout import Move

pytest.importorskip("triton")


def test_every_kernel_is_compiled_for_its_architecture(kernels: Kernels, target: Target) -> None:
    expected = {"finalize", "finalize_tensors"}
    for param in target.dtypes:
        state = "fp64" if param == "fp64" else "fp32"
        for grad in BITS if target.every_pair else [param]:
            expected |= {f"reduce {state} {grad} finishing", f"update {param} {grad}"}
            if target.every_pair:
                expected.add(f"reduce {state} {grad} gradients_only")
        expected |= {f"reduce {state} {param}", f"update {param} {param} no_momentum finishing"}
        expected |= {f"update {param} {param} no_momentum", f"update {param} {param} sgd"}
        moves = Move if target.every_pair else (Move.TO_X, Move.TO_Y)
        expected |= {f"interpolate {param} {move.name.lower()}" for move in moves}
    for param in ("fp32", "bf16"):
        expected |= {f"reduce_half fp32 {param}", f"reduce_half fp32 {param} finishing"}
        expected |= {f"interpolate_half {param} to_x", f"interpolate_half {param} to_y"}
        expected |= {f"update_half {param} {param}", f"update_quarter {param} {param}"}
        expected |= {f"update {param} {param} plain_{u}" for u in ("adam", "momentum", "sgd")}
        no_momentum = f"update_quarter {param} {param} no_momentum"
        expected |= {no_momentum, f"{no_momentum} finishing"}
    expected |= {"interpolate_quarter bf16 to_x", "interpolate_quarter bf16 to_y"}
    assert set(kernels) == expected
    targets = {re.findall(r"^\.target sm_(\d+)", k.ptx, re.MULTILINE)[0] for k in kernels.values()}
    assert targets == {str(target.arch)}
    for name, kernel in kernels.items():  # and the pattern above knows every form of an access
        mentions = len(re.findall(r"\b(?:ld|st)\.global", kernel.ptx))
        assert mentions == len(ACCESS.findall(kernel.ptx)) > 0, name


def test_nothing_that_changes_is_compiled_in(kernels: Kernels) -> None:
    """Else steps would be compiled anew: hyperparameters, step counts and sizes are arguments."""
    finish = {"COLUMNS", "MAX_COEFFICIENT", "SUM_BLOCK", "LANES"}
    shape = {"COLUMNS", "VECTOR", "CHUNK_SIZE", "BLOCK_SIZE"}
    allowed = {
        "reduce": shape | finish | {"WITH_E", "STATE_DTYPE", "E_DTYPE", "GRAD_DTYPE"},
        "update": shape
        | finish
        | {"PARAM_DTYPE", "STATE_DTYPE", "GRAD_DTYPE", "FORMAT"}
        | {"HAS_EXP_AVG", "HAS_EXP_AVG_SQ", "HAS_DISPLACEMENT"},
        "interpolate": shape | {"PARAM_DTYPE", "STATE_DTYPE", "MOVE", "FORMAT"},
        "finalize": finish,
        "finalize_tensors": {"COLUMNS", "LANES"},
    }
    for name, kernel in kernels.items():
        pass_name = name.split()[0].removesuffix("_half").removesuffix("_quarter")
        assert set(kernel.constants) == allowed[pass_name], name
        assert kernel.specialized_integers == [], name
        assert kernel.same_for_any_model, name


def test_dtypes_make_different_kernels(kernels: Kernels) -> None:
    by_code: dict[str, list[str]] = {}
    for name, kernel in kernels.items():
        code = "\n".join(
            line for line in kernel.ptx.splitlines() if not line.lstrip().startswith((".loc", "//"))
        )
        by_code.setdefault(code, []).append(name)
    assert [names for names in by_code.values() if len(names) > 1] == []


def test_roots_and_quotients_of_update_are_correctly_rounded(kernels: Kernels) -> None:
    for name in named(kernels, "update"):
        bits = state_bits(name.split()[1])
        operations = set(re.findall(r"\b(?:r?sqrt|div|rcp)\.[\w.]*f(?:32|64)\b", kernels[name].ptx))
        rootless = name.endswith(("sgd", "plain_momentum"))
        expected = set() if rootless else {f"sqrt.rn.f{bits}", f"div.rn.f{bits}"}
        assert operations == expected, name


def test_update_of_fp32_computes_in_fp32(kernels: Kernels) -> None:
    """Many GPUs have few fp64 units; there is one conversion per coefficient, or gradient."""
    for name in named(kernels, "update"):
        if not name.startswith("update fp64"):
            operations = re.findall(
                r"\b(?:add|sub|mul|fma|neg|max|min)[\w.]*f64", kernels[name].ptx
            )
            assert not operations, name


def test_products_and_sums_are_fused_but_for_moves(kernels: Kernels) -> None:
    """Whatever Triton's default is: it changes from version to version, and says so in a warning.

    A move rounds as plain torch does, so that ``eval()`` and ``averaged_state_dict()`` give the same bits.
    """
    for name, kernel in kernels.items():
        assert kernel.warnings == [], name
    fused = {name for name, kernel in kernels.items() if "fma.rn.f" in kernel.ptx}
    moves = ("interpolate", "interpolate_half", "interpolate_quarter")
    assert fused == set(kernels) - set(named(kernels, *moves))

"""The step's coefficients by one program: at the end of reduce, at the beginning of update, or in a kernel of
its own."""

import triton
import triton.language as tl

from sfplus_kernels.backends.triton.finalize import finish_groups, finish_tensors


@triton.jit
def finish_step(
    partials_ptr,
    rows_ptr,
    loss_ptr,
    globals_ptr,
    groups_ptr,
    hyper_ptr,
    settings_ptr,
    tensors_ptr,
    group_coefs_ptr,
    tensor_coefs_ptr,
    n_partials,
    n_groups,
    n_rows,
    COLUMNS: tl.constexpr,
    MAX_COEFFICIENT: tl.constexpr,
    SUM_BLOCK: tl.constexpr,
    LANES: tl.constexpr,
):
    """All of it, by one program. ``partials_ptr`` is None where there are no sums, ``loss_ptr`` where the
    loss is in the run state already."""
    skip = finish_groups(
        partials_ptr, loss_ptr, globals_ptr, groups_ptr, hyper_ptr, settings_ptr, group_coefs_ptr,
        n_partials, n_groups, COLUMNS, MAX_COEFFICIENT, SUM_BLOCK, LANES,
    )  # fmt: skip
    tl.debug_barrier()
    if skip == 0:
        for first in range(0, n_rows, LANES):
            finish_tensors(
                first, rows_ptr, groups_ptr, hyper_ptr, settings_ptr, tensors_ptr, tensor_coefs_ptr,
                n_rows, COLUMNS, LANES,
            )  # fmt: skip


@triton.jit(
    do_not_specialize=["n_partials", "n_groups", "n_rows"],
    do_not_specialize_on_alignment=["loss_ptr"],
)
def finalize_kernel(
    partials_ptr,
    rows_ptr,
    n_partials,
    loss_ptr,
    globals_ptr,
    groups_ptr,
    hyper_ptr,
    settings_ptr,
    tensors_ptr,
    group_coefs_ptr,
    tensor_coefs_ptr,
    n_groups,
    n_rows,
    COLUMNS: tl.constexpr,
    MAX_COEFFICIENT: tl.constexpr,
    SUM_BLOCK: tl.constexpr,
    LANES: tl.constexpr,
):
    """Where no other kernel finishes the step. One program."""
    finish_step(
        partials_ptr, rows_ptr, loss_ptr, globals_ptr, groups_ptr, hyper_ptr, settings_ptr, tensors_ptr,
        group_coefs_ptr, tensor_coefs_ptr, n_partials, n_groups, n_rows,
        COLUMNS, MAX_COEFFICIENT, SUM_BLOCK, LANES,
    )  # fmt: skip


@triton.jit(do_not_specialize=["n_rows"])
def finalize_tensors_kernel(
    rows_ptr,
    globals_ptr,
    groups_ptr,
    hyper_ptr,
    settings_ptr,
    tensors_ptr,
    tensor_coefs_ptr,
    n_rows,
    COLUMNS: tl.constexpr,
    LANES: tl.constexpr,
):
    """What is per tensor, where one program would take too long for it."""
    if tl.load(globals_ptr + COLUMNS.Global.SKIP) == 0:
        finish_tensors(
            tl.program_id(0) * LANES, rows_ptr, groups_ptr, hyper_ptr, settings_ptr, tensors_ptr,
            tensor_coefs_ptr, n_rows, COLUMNS, LANES,
        )  # fmt: skip

"""What the passes share about memory.

In every kernel ``COLUMNS`` stands for the enums of ``contract.layout``, handed in at compile time:
``COLUMNS.Row.Y`` is a column, ``COLUMNS.Row.WIDTH`` the number of columns. ``VECTOR`` is how many
elements a thread accesses at once: 16 bytes of state, and as many elements of all else.
"""

import triton
import triton.language as tl


@triton.jit
def round_to(x, DTYPE: tl.constexpr):
    """fp32 (fp64) values as ``DTYPE``, to nearest even.

    bf16 in integers: a plain cast to it is a truncation in Triton's interpreter.
    """
    if tl.bfloat16 == DTYPE and x.dtype == tl.float32:
        bits = x.to(tl.uint32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        rounded = tl.where(x == x, rounded, 0x7FC0)
        return rounded.to(tl.uint16).to(tl.bfloat16, bitcast=True)
    return x.to(DTYPE)


@triton.jit
def chunk_length(tensor, start, numel, COLUMNS: tl.constexpr, CHUNK_SIZE: tl.constexpr):
    """Elements of a chunk: where CHUNK_SIZE is 0, rows of its tensor are projected, and it is one of them."""
    if CHUNK_SIZE == 0:
        return tl.load(tensor + COLUMNS.Row.ROW_LENGTH).to(tl.int32)
    return tl.minimum(numel - start, CHUNK_SIZE).to(tl.int32)


@triton.jit
def y_or_written(y, param):
    """y of a parameter that was left as its rounding: where it is anything else, what was written wins."""
    return tl.where(round_to(y, param.dtype) == param, y, param.to(y.dtype))

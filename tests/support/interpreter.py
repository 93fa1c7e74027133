"""Triton's interpreter, without what it does again and again."""

from typing import Any

import triton.language as tl
from triton.runtime import interpreter


def quicken() -> None:
    """Leave out two habits that take a third of its time. What it computes, and what it checks, stay.

    Each call of a device function, ``tl.sum`` included, replaces all of the language by the interpreter's own
    functions, although the launch has done so; and each operation makes a table of all dtypes to look up
    one. Versions of Triton that are built otherwise keep their pace.
    """
    if not hasattr(interpreter, "_LangPatchScope") or not hasattr(interpreter, "_get_np_dtype"):
        return
    patch_lang, np_dtype_of = interpreter._patch_lang, interpreter._get_np_dtype
    np_dtypes: dict[str, Any] = {}

    def patch_lang_once(function: Any) -> Any:
        known = function.__globals__.values()
        languages = [value for value in known if value is tl or value is tl.core]
        if any(tl.core.is_builtin(language.load) for language in languages):
            return patch_lang(function)
        return interpreter._LangPatchScope()

    def remembered_np_dtype(dtype: Any) -> Any:
        scalar = dtype.element_ty if isinstance(dtype, tl.block_type) else dtype
        if isinstance(scalar, tl.pointer_type):
            return np_dtype_of(scalar)
        if scalar.name not in np_dtypes:
            np_dtypes[scalar.name] = np_dtype_of(scalar)
        return np_dtypes[scalar.name]

    interpreter._patch_lang = patch_lang_once
    interpreter._get_np_dtype = remembered_np_dtype

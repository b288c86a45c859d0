"""Triton's interpreter, which runs the GPU's kernels on the CPU, without two costs that are none of the kernels'."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from triton.runtime import interpreter


def make_launches_cheap() -> None:
    """Replace the functions of `triton.language` once a launch, and run launches in a thread of their own.

    The interpreter replaces them anew for each device function that a kernel calls, by the same ones: 3,000 times in
    the three launches of a small case, a third of their time.

    A thread has a stack of Python frames of its own, which starts empty. On the test's own stack a kernel may happen to
    run where a block of it ends. CPython then maps and frees a block at each call: half of the time of some tests.
    """
    patch, launch = interpreter._patch_lang, interpreter.GridExecutor.__call__
    patched: set[int] = set()  # the modules of kernels whose language is replaced in the launch that runs
    thread = ThreadPoolExecutor(1)

    def patch_once(function: Callable) -> Any:
        module = id(function.__globals__)
        if module in patched:
            return None  # nobody asks for it: a launch restores what its own patch has replaced, its first one
        patched.add(module)
        return patch(function)

    def launch_afresh(*args: Any, **kwargs: Any) -> Any:
        patched.clear()
        return thread.submit(launch, *args, **kwargs).result()

    interpreter._patch_lang, interpreter.GridExecutor.__call__ = patch_once, launch_afresh

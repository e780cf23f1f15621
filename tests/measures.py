"""What bounds are checked with: memory as the interpreter counts it, work in bytecodes; both the same anywhere."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterable
from types import BuiltinFunctionType, FrameType, FunctionType, ModuleType
from typing import Any

FREE_THREADED = not getattr(sys, "_is_gil_enabled", lambda: True)()
_SHARED = (type, ModuleType, FunctionType, BuiltinFunctionType)
_COLLECTED = 1 << 14  # Py_TPFLAGS_HAVE_GC
_HEADER = 16  # bytes of an object; a free-threaded interpreter has more where others have those of the collector


def deep_size(root: object, without: Iterable[object] = ()) -> int:
    """Bytes of an object and of all that it alone leads to.

    Args:
        without: objects at which to stop.
    """
    seen = {id(each) for each in without}
    total, waiting = 0, [root]
    while waiting:
        each = waiting.pop()
        if id(each) in seen or isinstance(each, _SHARED):
            continue
        seen.add(id(each))
        total += sys.getsizeof(each)
        if not type(each).__flags__ & _COLLECTED:
            total -= sys.getsizeof(object()) - _HEADER
        waiting += gc.get_referents(each)
    return total


def bytecodes(call: Callable[[], object]) -> int:
    """How many bytecodes a call executes, those of comprehensions and of everything called included.

    CPython 3.12 and later overlook some of code that is traced for the first time.
    """
    count = 0

    def trace(frame: FrameType, event: str, argument: Any) -> Callable[..., Any]:
        nonlocal count
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        count += event == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return count

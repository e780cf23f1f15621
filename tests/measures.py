"""What bounds are checked with: memory as the interpreter counts it, work in bytecodes; both the same anywhere."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterable
from types import BuiltinFunctionType, FrameType, FunctionType, ModuleType
from typing import Any

_SHARED = (type, ModuleType, FunctionType, BuiltinFunctionType)


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
        waiting += gc.get_referents(each)
    return total


def bytecodes(call: Callable[[], object]) -> int:
    """How many bytecodes a call executes, those of comprehensions and of everything called included."""
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

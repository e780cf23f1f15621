"""Plain records: what `dataclasses.dataclass(slots=True)` makes of a class, for a fifth of its time.

Every process that imports this package waits for its records to be made, and a dataclass takes half a millisecond. Type
checkers see a dataclass; `dataclasses.replace` and the like do not work.
"""

from __future__ import annotations

from dataclasses import MISSING, Field, field
from operator import attrgetter
from typing import Any, TypeVar, cast, dataclass_transform

T = TypeVar("T")


@dataclass_transform(field_specifiers=(field,))
def record(cls: type[T]) -> type[T]:
    """The class anew with its annotations as slots, and with `__init__`, `__eq__` and `__repr__` over them.

    Of `field()` it knows `default`, `default_factory` and `compare`.
    """
    names = tuple(cls.__annotations__)
    given = {name: cls.__dict__[name] for name in names if name in cls.__dict__}
    values = attrgetter(*(name for name in names if getattr(given.get(name), "compare", True)))

    def equal(self: T, other: object) -> bool:
        return bool(values(self) == values(other)) if other.__class__ is self.__class__ else NotImplemented

    def text(self: T) -> str:
        return f"{cls.__qualname__}({', '.join(f'{name}={getattr(self, name)!r}' for name in names)})"

    body = {name: value for name, value in cls.__dict__.items() if name not in (*names, "__dict__", "__weakref__")}
    body |= {"__slots__": names, "__init__": _initializer(names, given), "__hash__": None}
    body |= {"__eq__": equal, "__repr__": text}
    return cast("type[T]", type(cls.__name__, cls.__bases__, body))


def _initializer(names: tuple[str, ...], given: dict[str, Any]) -> Any:
    """As if written by hand: these are on the path of packets."""
    namespace: dict[str, Any] = {}
    parameters, lines = ["self"], []
    for name in names:
        default: Any = given.get(name, MISSING)
        factory: Any = MISSING
        value = name
        if isinstance(default, Field):
            default, factory = default.default, default.default_factory
        if factory is not MISSING:
            default, value = factory, f"_{name}() if {name} is _{name} else {name}"
        parameters.append(name if default is MISSING else f"{name}=_{name}")
        lines.append(f"self.{name} = {value}")
        namespace[f"_{name}"] = default
    source = f"def __init__({', '.join(parameters)}):\n    " + "\n    ".join(lines)
    exec(source, namespace)  # noqa: S102  # names of this package's own source, as in `dataclasses`
    return namespace["__init__"]

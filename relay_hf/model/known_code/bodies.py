"""What stands in the bodies of classes, remembered: to go through them anew takes half of the time of a look."""

from __future__ import annotations

import sys
from types import CodeType, FunctionType
from typing import Any, NamedTuple

from .callables import methods
from .origins import file_of, is_known, is_known_function


class Body(NamedTuple):
    """The body of a class.

    Attributes:
        content: all that stands in it, by name.
        functions: its functions that are known in every model, by their code.
        others: all else that a forward may run.
    """

    content: dict[str, Any]
    functions: dict[CodeType, FunctionType]
    others: list[Any]


_bodies: dict[type, Body] = {}


def body_of(kind: type) -> Body:
    """The body of a class as it is now."""
    body = _bodies.get(kind)
    if body is None or vars(kind) != body.content or any(f.__code__ is not c for c, f in body.functions.items()):
        body = Body(dict(vars(kind)), {}, [])
        for each in methods(kind):
            # A function that holds no other is known for good.
            if type(each) is FunctionType and each.__closure__ is None and is_known_function(each):
                body.functions[each.__code__] = each
            else:
                body.others.append(each)
        # Any other class would be kept alive, and what it refers to: a user's, and those that PyTorch makes as it runs.
        stands = getattr(sys.modules.get(kind.__module__), kind.__name__, None) is kind
        if stands and is_known(file_of(kind.__module__) or ""):
            _bodies[kind] = body
    return body

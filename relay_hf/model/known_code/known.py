"""The code that is known in one model, and what else there is in its classes and instances."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from types import CodeType, FunctionType
from typing import Any

from torch import jit, nn

from ..modules import GENERAL_CLASSES, is_plain_linear, own_names
from ..upstream.names import CALLERS_OF_FORWARDS
from .bodies import body_of
from .by_token import may_mix
from .callables import functions_in, is_data, may_run
from .origins import described, file_of, is_in, is_known, is_known_function
from .pytorch import unsafe_modules
from .quantizers import is_of_scheme, is_unknown_quantizers, package_of, puts_forward_on, weight_kinds

_WRAPPERS_OBJECT = "_hf_hook"  # accelerate's wrapper of a forward calls its methods
_GENERAL = GENERAL_CLASSES | {*nn.Parameter.__mro__}
_OF_THE_MODEL = ("forward", _WRAPPERS_OBJECT, *CALLERS_OF_FORWARDS)
_NONE: frozenset[str] = frozenset()

Found = tuple[nn.Module, str, str]


class KnownCode:
    """The code that is known in one model: that of the known packages, and that of the model's own classes.

    Args:
        files: the model's own files.
        modules: its modules, each of which is looked at by itself.

    Attributes:
        functions: the known functions that were found so far, one for each code.
    """

    def __init__(self, files: frozenset[str], modules: Sequence[nn.Module]) -> None:
        self.functions: dict[CodeType, FunctionType] = {}
        self._files = files
        self._modules = modules
        self._ids = {*map(id, modules)}  # and those of classes of objects
        self._own: set[CodeType] = set()  # of the model's own classes

    def unknown_kinds(self) -> Iterator[Found]:
        """The modules whose class is not known, or that of a weight, each with the class and what is unknown in it."""
        kinds = (*dict.fromkeys(map(type, self._modules)), *weight_kinds(self._modules))
        origins = {kind: self.unknown_in_class(kind) for kind in kinds}
        if any(origins.values()):
            for module in self._modules:
                for kind in map(type, (module, *module._parameters.values(), *module._buffers.values())):
                    if origins.get(kind) is not None:
                        yield module, kind.__name__, str(origins[kind])
        for module, origin in unsafe_modules(self._modules).items():
            yield module, type(module).__name__, origin

    def unknown_in_class(self, kind: type) -> str | None:
        """The origin of what is unknown in a class, or None. Only an own class may have code of the own files."""
        package = package_of(kind)
        if package:
            found = self._unknown(getattr(kind, "forward", None), _NONE, package)
            return None if found is None else described(found)
        if is_unknown_quantizers(kind):
            return f"{kind.__module__}.{kind.__qualname__}"
        for base in kind.__mro__:
            if base in _GENERAL:
                continue
            path = file_of(base.__module__)
            own = path is None or path in self._files
            if (not own and not is_known(str(path))) or base is jit.ScriptModule:
                return f"{kind.__module__}.{kind.__qualname__}"
            body = body_of(base)
            self.functions.update(body.functions)
            for method in body.others:
                found = self._unknown(method, self._files if own else _NONE)
                if found is not None:
                    return described(found)
                if own and self._files:
                    self._own.update(each.__code__ for each in functions_in(method) if isinstance(each, FunctionType))
        return None

    def unknown_attributes(self, model: nn.Module) -> Iterator[Found]:
        """What instances have in place of a method, or beside: each with its module, its name, and what is unknown.

        Of the model itself only its forward, and what makes its inputs: another generate(), say, runs around forwards.
        """
        for module in self._modules:
            if is_plain_linear(module):
                continue
            members, package = module.__dict__, package_of(type(module))
            for name in own_names(members) if module is not model else _OF_THE_MODEL:
                value = members.get(name)
                if is_data(value) or not may_run(name) or is_of_scheme(value):
                    continue
                if name == _WRAPPERS_OBJECT:
                    value = [*_all_hooks(value)]
                # A function of the model's own file may be what its class has put there, but no method's place.
                found = self._unknown(value, _NONE if hasattr(type(module), name) else self._files, package)
                if found is not None:
                    yield module, f"{type(module).__name__}.{name}", described(found)

    def _unknown(self, value: Any, files: frozenset[str], package: str = "") -> Any:
        """The first function that a value runs and that is not known, of none of `files`, and of no own class.

        Args:
            value: a callable, an object, or a container of them.
            files: whose functions are known too.
            package: a quantizer whose functions are known too; empty for none.
        """
        if type(value) is FunctionType and value.__closure__ is None:  # most are such, and take 0.2 us
            found: Iterable[Any] = (value,)
        else:
            found = functions_in(value, self._ids)
        for each in found:
            if not is_known_function(each, files):
                code = getattr(each, "__code__", None)
                if code is None or not (
                    code in self._own or (package and is_in(code.co_filename, package)) or puts_forward_on(code)
                ):
                    return each
            if isinstance(each, FunctionType):
                if may_mix(each):
                    return each
                self.functions[each.__code__] = each
        for each in value if isinstance(value, list) else ():
            self._ids.add(id(type(each)))  # accelerate puts the same hooks on all modules
        return None


def _all_hooks(hook: Any) -> Iterator[Any]:
    """The object of accelerate's wrapper, and those that it calls one after the other."""
    yield hook
    for each in getattr(hook, "hooks", ()):
        yield from _all_hooks(each)

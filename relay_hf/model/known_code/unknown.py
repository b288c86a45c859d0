"""Finds code in a model that is not known: in its modules' classes, in what instances have in place of a method, and
in the functions of the files that the classes are written in."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from types import CodeType, FunctionType
from typing import Any

from torch import jit, nn
from torch.nn import functional
from torch.nn.utils.parametrize import ParametrizationList

from ..modules import GENERAL_CLASSES, is_plain_linear, own_names
from ..upstream.names import INPUTS_OF_FORWARDS
from .callables import code_in, may_run, methods
from .origins import described, file_of, is_in, is_known, own_files
from .quantizers import is_unknown_quantizers, package_of, puts_forward_on, weight_kinds

_WRAPPERS_OBJECT = "_hf_hook"  # accelerate's wrapper of a forward calls its methods
_GENERAL = GENERAL_CLASSES | {*nn.Parameter.__mro__}
_OF_THE_MODEL = ("forward", _WRAPPERS_OBJECT, *INPUTS_OF_FORWARDS)
_RUN_BY_ALL = ("__call__", "_call_impl", "_wrapped_call_impl", "__getattr__")  # methods of every module
_NONE: frozenset[str] = frozenset()

Trust = Callable[[nn.Module], bool]


@dataclass(frozen=True)
class Unknown:
    """Code that is not known to act token by token.

    Attributes:
        module: the module that runs it; None if it is a function of a file, which many modules may call.
        what: what it is in the place of, in words.
        origin: its name, and where it is from.
    """

    module: nn.Module | None
    what: str
    origin: str


def unknown_code(model: nn.Module, modules: Sequence[nn.Module], trusted: Trust) -> Unknown | None:
    """The first code of a model that is not known, or None.

    `trusted`: whether the user vouches for a module; for the model itself it means all functions that its files call.
    """
    kinds, known = [*dict.fromkeys(map(type, modules))], _KnownCode(own_files(type(model)), modules)
    found = {kind: known.unknown_in_class(kind) for kind in (*kinds, *weight_kinds(modules))}
    unknown = {kind: origin for kind, origin in found.items() if origin is not None}
    if unknown:
        lists = [module for module in modules if isinstance(module, ParametrizationList)]
        of_weights = {id(each) for one in lists for each in one.modules()}  # they see no token
        for module in modules:
            for kind in map(type, (module, *module._parameters.values())):
                if kind in unknown and id(module) not in of_weights and not trusted(module):
                    return Unknown(module, kind.__name__, unknown[kind])
    for module, name, code in known.unknown_attributes(model, modules):
        if not trusted(module):
            return Unknown(module, f"{type(module).__name__}.{name}", described(code))
    return None if trusted(model) else known.unknown_function(kinds)


def unknown_class(kind: type) -> str | None:
    """The origin of what is unknown in a class of a known package, or None."""
    return _KnownCode(_NONE, ()).unknown_in_class(kind)


class _KnownCode:
    """The code that is known in one model: that of the known packages, and that of the model's own classes.

    Args:
        files: the model's own files.
        modules: its modules, each of which is looked at by itself.
    """

    def __init__(self, files: frozenset[str], modules: Iterable[nn.Module]) -> None:
        self._files = files
        self._modules = frozenset(map(id, modules))
        self._own: set[CodeType] = set()  # of the model's own classes

    def unknown_in_class(self, kind: type) -> str | None:
        """The origin of what is unknown in a class, or None. Only an own class may have code of the own files."""
        package = package_of(kind)
        if package:
            code = self._unknown(getattr(kind, "forward", None), _NONE, package)
            return None if code is None else described(code)
        if is_unknown_quantizers(kind):
            return f"{kind.__module__}.{kind.__qualname__}"
        for base in kind.__mro__:
            if base in _GENERAL:
                continue
            path = file_of(base.__module__)
            own = path is None or path in self._files
            if (not own and not is_known(str(path))) or base is jit.ScriptModule:
                return f"{kind.__module__}.{kind.__qualname__}"
            for method in methods(base):
                code = self._unknown(method, self._files if own else _NONE)
                if code is not None:
                    return described(code)
                if own and self._files:
                    self._own.update(code_in(method))
        return None

    def unknown_attributes(
        self, model: nn.Module, modules: Iterable[nn.Module]
    ) -> Iterator[tuple[nn.Module, str, CodeType]]:
        """What instances have in place of a method, or beside: each with its module, its name, and its unknown code.

        Of the model itself only its forward, and what makes its inputs: another generate(), say, runs around forwards.
        """
        for module in modules:
            if is_plain_linear(module):
                continue
            members, package = module.__dict__, package_of(type(module))
            for name in own_names(members) if module is not model else _OF_THE_MODEL:
                value = members.get(name)
                if callable(value) and may_run(name):
                    # A function of the model's own file may be what its class has put there, but no method's place.
                    files = _NONE if hasattr(type(module), name) else self._files
                    code = self._unknown(value, files, package)
                elif name == _WRAPPERS_OBJECT:
                    code = next(filter(None, (self._unknown(each, _NONE) for each in _all_hooks(value))), None)
                else:
                    continue
                if code is not None:
                    yield module, name, code

    def unknown_function(self, kinds: Iterable[type]) -> Unknown | None:
        """A function of a file of code that has been replaced by an unknown one, or None."""
        for name in dict.fromkeys(kind.__module__ for kind in kinds):
            path = str(file_of(name))
            if not is_known(path) and path not in self._files:
                continue
            namespace = vars(sys.modules.get(name, functional))
            for function in _functions(name):
                code = self._unknown(namespace.get(function), self._files if path in self._files else _NONE)
                if code is not None:
                    return Unknown(None, f"{name}.{function}", described(code))
        for owner, names in ((functional, vars(functional)), (nn.Module, _RUN_BY_ALL)):
            for name in names:
                value = vars(owner)[name]
                code = self._unknown(value, _NONE) if callable(value) and not isinstance(value, type) else None
                if code is not None:
                    return Unknown(None, f"{owner.__name__}.{name}", described(code))
        return None

    def _unknown(self, value: Any, files: frozenset[str], package: str = "") -> CodeType | None:
        """The first code in a callable that is of no known package, of none of `files`, and of no own class.

        Args:
            value: the callable.
            files: whose code is known too.
            package: a quantizer whose code is known too; empty for none.
        """
        if type(value) is FunctionType and value.__closure__ is None:  # most are such, and take 0.2 us
            found: Iterable[CodeType] = (value.__code__,)
        else:
            found = code_in(value, self._modules)
        for code in found:
            path = code.co_filename
            known = is_known(path) or path in files or code in self._own or (package and is_in(path, package))
            if not known and not puts_forward_on(code):
                return code
        return None


@cache
def _functions(module_name: str) -> tuple[str, ...]:
    """The names of the functions that a file of code defines, whatever stands under these names by now."""
    spec = getattr(sys.modules.get(module_name), "__spec__", None)
    get_code = getattr(getattr(spec, "loader", None), "get_code", None)
    code = None if get_code is None else get_code(module_name)
    inside = () if code is None else code.co_consts
    return tuple(each.co_name for each in inside if isinstance(each, CodeType) and not each.co_name.startswith("<"))


def _all_hooks(hook: Any) -> Iterator[Any]:
    """The object of accelerate's wrapper, and those that it calls one after the other."""
    yield hook
    for each in getattr(hook, "hooks", ()):
        yield from _all_hooks(each)

"""A function as the text of a script: its source, and of what it uses no more than it needs.

Text, not a pickle: what runs in the cluster can be read there (`kubectl get configmap`), needs no equal versions of
Python on both sides, and cannot be anything but what stands in it.
"""

from __future__ import annotations

import ast
import builtins
import inspect
import json
import symtable
import textwrap
from collections.abc import Callable, Iterator, Mapping
from types import FunctionType, ModuleType
from typing import Any

MOST = 900_000
"""Characters of a script; a ConfigMap holds a MiB."""


class SourceError(ValueError):
    """The function cannot be sent; the text says why and what to do."""


def script_of(fn: Callable[..., Any], arguments: Mapping[str, Any], mark: str) -> str:
    """A script that calls `fn` in a session.

    Modules that the function uses are imported, functions and classes of its own module (a notebook) come along as
    source, numbers and texts as literals.

    Args:
        fn: A function with source, without variables of a function around it.
        arguments: Its keyword arguments; JSON.
        mark: Precedes the lines with results.

    Raises:
        SourceError: it uses something that cannot be sent.
    """
    if not isinstance(fn, FunctionType) or fn.__name__ == "<lambda>":
        raise SourceError(f"{fn!r} is no function with a name: define one with def")
    if fn.__code__.co_freevars:
        names = ", ".join(fn.__code__.co_freevars)
        raise SourceError(f"{fn.__name__} uses {names} of the function around it: pass it as an argument")
    try:
        given = json.dumps(dict(arguments))
    except (TypeError, ValueError) as error:
        raise SourceError(f"arguments of {fn.__name__} must be JSON: {error}; pass a URI or plain values") from error
    unknown = _unfit(fn, arguments)
    if unknown:
        raise SourceError(unknown)
    parts = _Parts(fn)
    parts.add(fn)
    lines = [
        f'"""Made by headrace.training.run of the function {fn.__name__}: change that one, not this."""',
        "",
        "from __future__ import annotations",
        "",
        *sorted(parts.imports),
        *parts.constants,
        "",
        *(f"\n{source}" for source in parts.sources),
        "",
        'if __name__ == "__main__":',
        "    from headrace.training.launch.entry import main",
        "",
        f"    main({fn.__name__}, {given!r}, {mark!r})",
        "",
    ]
    text = "\n".join(lines)
    if len(text) > MOST:
        raise SourceError(f"{fn.__name__} with what it uses has {len(text)} characters, at most {MOST} can be sent")
    return text


def takes_run(fn: Callable[..., Any]) -> bool:
    """Whether the function's first parameter is `run`, which is given the session."""
    return next(iter(inspect.signature(fn).parameters), "") == "run"


def _unfit(fn: Callable[..., Any], arguments: Mapping[str, Any]) -> str:
    """Why the function cannot be called with these arguments; empty where it can."""
    try:
        inspect.signature(fn).bind(*([None] if takes_run(fn) else []), **arguments)
    except TypeError as error:
        return f"{fn.__name__}: {error}; correct arguments"
    return ""


class _Parts:
    """What a script is made of, in an order in which everything is defined before it is used at import."""

    def __init__(self, fn: FunctionType) -> None:
        self._module = fn.__module__
        self._globals = fn.__globals__
        self._seen: set[str] = set()
        self.imports: set[str] = set()
        self.constants: list[str] = []
        self.sources: list[str] = []

    def add(self, item: Any) -> None:
        """A function or a class of the module, after what it uses."""
        if item.__name__ in self._seen:
            return
        self._seen.add(item.__name__)
        try:
            source = textwrap.dedent(inspect.getsource(item))
        except (OSError, TypeError) as error:
            raise SourceError(
                f"the source of {item.__name__} is not to be had ({error}): define it in a file or a notebook's cell"
            ) from error
        for name in _global_names(source):
            self._need(name, item.__name__)
        self.sources.append(source)

    def _need(self, name: str, user: str) -> None:
        if name in self._seen or name in self.imports:
            return
        if name not in self._globals:
            if hasattr(builtins, name) or name in ("__name__", "__file__"):
                return
            raise SourceError(f"{user} uses {name}, which is not defined")
        value = self._globals[name]
        if isinstance(value, ModuleType):
            self._seen.add(name)
            self.imports.add(_import(value.__name__, name))
            return
        home, called = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
        if isinstance(value, FunctionType | type) and home == self._module and called == name:
            self.add(value)
        elif callable(value) and home and called and "." not in called and home not in (self._module, "__main__"):
            self._seen.add(name)
            self.imports.add(f"from {home} import {called}" + (f" as {name}" if name != called else ""))
        elif _is_literal(value):
            self._seen.add(name)
            self.constants.append(f"{name} = {value!r}")
        else:
            raise SourceError(
                f"{user} uses {name}, a {type(value).__name__}, which cannot be sent: make it inside of the function, "
                "or pass what it is made from (a URI, plain values) as an argument"
            )


def _import(module: str, name: str) -> str:
    if module == name:
        return f"import {module}"
    parent, _, last = module.rpartition(".")
    return f"from {parent} import {last}" if parent and last == name else f"import {module} as {name}"


def _global_names(source: str) -> list[str]:
    """Names that a definition takes from its module: in its body, its defaults, its decorators, its bases."""
    # As in the script: annotations stay text, so what only they name is not needed.
    table = symtable.symtable(f"from __future__ import annotations\n{source}", "<source>", "exec")
    defined = {symbol.get_name() for symbol in table.get_symbols() if symbol.is_assigned() or symbol.is_namespace()}
    found: dict[str, None] = {}
    for scope, top in _scopes(table):
        for symbol in scope.get_symbols():
            name = symbol.get_name()
            wanted = symbol.is_referenced() and (top or symbol.is_global())
            if wanted and name not in defined:
                found[name] = None
    return list(found)


def _scopes(table: symtable.SymbolTable) -> Iterator[tuple[symtable.SymbolTable, bool]]:
    yield table, True
    waiting = list(table.get_children())
    while waiting:
        scope = waiting.pop()
        yield scope, False
        waiting += scope.get_children()


def _is_literal(value: Any) -> bool:
    try:
        return bool(ast.literal_eval(repr(value)) == value)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return False

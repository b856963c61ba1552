"""Binds a call to a task's signature, defaults applied, as inspect does but faster."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

_ABSENT: Any = object()
_BY_POSITION = (
    inspect.Parameter.POSITIONAL_ONLY,
    inspect.Parameter.POSITIONAL_OR_KEYWORD,
)
_BY_NAME = (
    inspect.Parameter.POSITIONAL_OR_KEYWORD,
    inspect.Parameter.KEYWORD_ONLY,
)
_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


class Binder:
    """Does what :meth:`inspect.Signature.bind` with defaults does, compiled once for a signature.

    ``names`` are the parameters in order; a bound call is a tuple of their values, the ``*args``
    parameter's a tuple and the ``**kwargs`` parameter's a dict.
    """

    def __init__(self, signature: inspect.Signature) -> None:
        self._signature = signature
        self._parameters = tuple(signature.parameters.values())
        self.names = tuple(parameter.name for parameter in self._parameters)
        self.index = {name: position for position, name in enumerate(self.names)}
        self.variadic = any(parameter.kind in _VARIADIC for parameter in self._parameters)
        self._plain = not self.variadic and all(
            parameter.kind in _BY_NAME for parameter in self._parameters
        )
        self._defaults = tuple(
            _ABSENT if parameter.default is inspect.Parameter.empty else parameter.default
            for parameter in self._parameters
        )
        self._by_position = sum(parameter.kind in _BY_POSITION for parameter in self._parameters)
        required = [i for i, default in enumerate(self._defaults) if default is _ABSENT]
        self._enough = required[-1] + 1 if required else 0

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
        """Return the values of all parameters; raise inspect's TypeError if they don't fit."""
        count = len(args)
        if not self._plain or count > self._by_position:
            return self._bind_slowly(args, kwargs)
        if not kwargs:
            if count < self._enough:
                return self._bind_slowly(args, kwargs)
            return (*args, *self._defaults[count:])
        values = list(args)
        used = 0
        for position in range(count, len(self.names)):
            value = kwargs.get(self.names[position], _ABSENT)
            if value is _ABSENT:
                value = self._defaults[position]
                if value is _ABSENT:
                    return self._bind_slowly(args, kwargs)
            else:
                used += 1
            values.append(value)
        if used != len(kwargs):
            return self._bind_slowly(args, kwargs)
        return tuple(values)

    def _bind_slowly(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
        bound = self._signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return tuple([bound.arguments[name] for name in self.names])

    def as_call(self, values: Sequence[Any]) -> tuple[list[Any], dict[str, Any]]:
        """Return the positional and keyword arguments that call the task with ``values``."""
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        for parameter, value in zip(self._parameters, values, strict=True):
            if parameter.kind in _BY_POSITION:
                args.append(value)
            elif parameter.kind is inspect.Parameter.VAR_POSITIONAL:
                args.extend(value)
            elif parameter.kind is inspect.Parameter.VAR_KEYWORD:
                kwargs.update(value)
            else:
                kwargs[parameter.name] = value
        return args, kwargs

    def as_keywords(self, values: Sequence[Any]) -> dict[str, Any]:
        """Return all of ``values`` by name; those of ``**kwargs`` have their own names."""
        keywords: dict[str, Any] = {}
        for parameter, value in zip(self._parameters, values, strict=True):
            if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                keywords.update(value)
            else:
                keywords[parameter.name] = value
        return keywords

    def sample(self) -> tuple[Any, ...]:
        """Return the values of a call without extra arguments, to test what a callable accepts."""
        return tuple(
            ()
            if parameter.kind is inspect.Parameter.VAR_POSITIONAL
            else {}
            if parameter.kind is inspect.Parameter.VAR_KEYWORD
            else None
            for parameter in self._parameters
        )

"""Payloads as one object: a handler may take a single dataclass, msgspec struct or pydantic model instead of keywords."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any

import msgspec


class Model:
    """How the one object of a handler is made of a payload, and a payload of it."""

    def __init__(self, parameter: str, kind: Any) -> None:
        self.parameter = parameter
        self.kind = kind
        self._pydantic = hasattr(kind, "model_validate")

    def load(self, payload: Any) -> Any:
        """The object. Raises `ValueError` saying what does not fit."""
        try:
            return (
                self.kind.model_validate(payload)
                if self._pydantic
                else msgspec.convert(payload, self.kind, str_keys=True)
            )
        except (ValueError, TypeError) as error:
            raise ValueError(f"the payload is no {self.kind.__name__}: {error}") from None

    def dump(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """The payload of an instance, or of the fields of one. Raises `TypeError` or `ValueError` if they do not fit."""
        if self.parameter in kwargs and len(kwargs) == 1:
            args, kwargs = (kwargs[self.parameter],), {}
        if len(args) == 1 and not kwargs and isinstance(args[0], self.kind):
            value = args[0]
        else:
            value = self.kind(*args, **kwargs)
        return value.model_dump(mode="json") if self._pydantic else msgspec.to_builtins(value, str_keys=True)


def model_of(signature: inspect.Signature, hints: Mapping[str, Any]) -> Model | None:
    """The model that a handler takes, if it takes exactly one argument (besides ctx) and that is of such a class."""
    names = [name for name in signature.parameters if name != "ctx"]
    if len(names) != 1:
        return None
    kind = hints.get(names[0])
    if isinstance(kind, type) and (
        dataclasses.is_dataclass(kind) or issubclass(kind, msgspec.Struct) or hasattr(kind, "model_validate")
    ):
        return Model(names[0], kind)
    return None

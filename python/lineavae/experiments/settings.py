"""What a reader types for an experiment: its name, or a figure's; settings and seeds. This needs no torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from types import NoneType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from lineavae.experiments.runs import Config

if TYPE_CHECKING:
    from lineavae.experiments import Experiments

_Config = TypeVar("_Config", bound=Config)

_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
_PLURALS = {int: "whole numbers", float: "numbers", str: "texts"}


def resolve(asked: Iterable[str], experiments: Experiments) -> list[str]:
    """Give the experiments with these names, or that show figures and tables with these names, each once.

    Raises
    ------
    ValueError
        There is none; the message has the names that there are.
    """
    found: dict[str, None] = {}
    for name in asked:
        showing = [key for key in experiments if name == key or name in experiments.entry(key).shows]
        if not showing:
            shown = dict.fromkeys(shows for key in experiments for shows in experiments.entry(key).shows)
            raise ValueError(
                f"there is no experiment {name!r}, only {', '.join(experiments)}; "
                f"and the figures and tables that they show, {', '.join(shown)}"
            )
        found |= dict.fromkeys(showing)
    return list(found)


def change(config: _Config, settings: Iterable[str]) -> _Config:
    """Give a configuration with some fields changed.

    Parameters
    ----------
    config
        What to begin with.
    settings
        ``name=value`` each; a value of several parts has commas between them.

    Raises
    ------
    ValueError
        There is no such field, or this is no value for it.

    Examples
    --------
    >>> from lineavae.experiments.runs import Config
    >>> from lineavae.experiments.settings import change
    >>> change(Config(), ["num_images=200", "seed=3"]).num_images
    200
    """
    hints = get_type_hints(type(config))
    hints = {field.name: hints[field.name] for field in fields(config)}
    values: dict[str, Any] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals:
            raise ValueError(f"a setting must be name=value, got {setting!r}")
        if name not in hints:
            raise ValueError(f"there is no setting {name!r}, only {', '.join(hints)}")
        try:
            values[name] = _parse(hints[name], text.strip())
        except ValueError:
            raise ValueError(f"{name} must be {_describe(hints[name])}, got {text!r}") from None
    return replace(config, **values)


def parse_seeds(text: str) -> tuple[int, ...]:
    """Give the seeds that ``0:5``, ``0,3,7`` or ``0:3,7`` names, without the end of a range.

    Raises
    ------
    ValueError
        These are no different whole numbers from 0 on.

    Examples
    --------
    >>> from lineavae.experiments.settings import parse_seeds
    >>> parse_seeds("0:3,7")
    (0, 1, 2, 7)
    """
    try:
        ranges = [[int(end) for end in part.split(":")] for part in _items(text)]
        seeds = tuple(seed for first, *end in ranges for seed in range(first, *end or [first + 1]))
    except (ValueError, TypeError):
        seeds = ()
    if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds must be different whole numbers from 0 on, as in 0:5 or 0,3,7, got {text!r}")
    return seeds


def _items(text: str) -> Sequence[str]:
    """Split what has commas between its parts, in brackets or not."""
    return [item.strip() for item in text.strip("[]() ").split(",") if item.strip()]


def _parse(hint: Any, text: str) -> Any:
    """Read a value of an annotated type; a ValueError says that it is none."""
    kinds = get_args(hint)
    if NoneType in kinds:
        return None if text in ("none", "null") else _parse(kinds[0], text)
    if get_origin(hint) is tuple:
        items = _items(text)
        kinds = kinds[:1] * len(items) if kinds[-1] is Ellipsis else kinds
        return tuple(_parse(kind, item) for kind, item in zip(kinds, items, strict=True))
    choices: Sequence[Any] = kinds if get_origin(hint) is Literal else ("true", "false")
    if get_origin(hint) is Literal or hint is bool:
        if text not in choices:
            raise ValueError
        return text if hint is not bool else text == "true"
    value = hint(text)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError
    return value


def _describe(hint: Any) -> str:
    kinds = get_args(hint)
    if NoneType in kinds:
        return f"{_describe(kinds[0])}, or none"
    if get_origin(hint) is Literal:
        return " or ".join(map(str, kinds))
    if get_origin(hint) is tuple:
        count = "" if kinds[-1] is Ellipsis else f"{len(kinds)} "
        return f"{count}{_PLURALS[kinds[0]]} with commas between them"
    return _WORDS[hint]

"""YAML as our files have it: mappings, lists and plain values, read in one pass, with no aliases, tags or depths."""

from __future__ import annotations

import functools
from typing import Any

import yaml

DEEPEST = 20
"""Collections inside one another."""

# The parser in C is six times as fast; where it is not there, the one in Python gives the same events.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_values = yaml.SafeLoader("")
"""Knows what a plain word stands for: `12`, `1e-6`, `true`, `null`."""
_TEXT = "tag:yaml.org,2002:str"


def parse(text: str) -> Any:
    """The value of a document of YAML 1.1; a key that is given twice has its last value.

    Raises:
        yaml.YAMLError: it is none, is more than one document, or has an alias (a few lines of them stand for more than
            any memory holds), a tag, a key that is a collection, or is too deep; with the place where it knows it.
        ValueError: it has a date that there is not.
    """
    top: list[Any] = []
    open_: list[tuple[Any, list[Any]]] = [(list, top)]
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.ScalarEvent):
            open_[-1][1].append(_value(event))
        elif isinstance(event, yaml.CollectionEndEvent):
            kind, inside = open_.pop()
            value = inside if kind is list else _mapping(inside, event)
            open_[-1][1].append(value)
        elif isinstance(event, yaml.CollectionStartEvent):
            if event.tag is not None or len(open_) > DEEPEST:
                raise _fault("tags have no place here" if event.tag is not None else "it is too deep", event)
            open_.append((dict if isinstance(event, yaml.MappingStartEvent) else list, []))
        elif isinstance(event, yaml.AliasEvent):
            raise _fault("aliases have no place here", event)
        elif isinstance(event, yaml.DocumentStartEvent) and top:
            raise _fault("it is more than one document", event)
    return top[0] if top else None


def _mapping(inside: list[Any], event: Any) -> dict[Any, Any]:
    keys, values = inside[::2], inside[1::2]
    if any(isinstance(key, list | dict) for key in keys):
        raise _fault("a key is a collection", event)
    return dict(zip(keys, values, strict=True))


def _value(event: Any) -> Any:
    if event.tag is not None:
        raise _fault("tags have no place here", event)
    if not event.implicit[0]:
        return event.value
    # No word that begins otherwise stands for anything but itself.
    if event.value[:1] not in _values.yaml_implicit_resolvers:
        return event.value
    return _word(event.value)


@functools.lru_cache(4096)
def _word(word: str) -> Any:
    """What a plain word stands for; the same ones come again in every file."""
    tag = _values.resolve(yaml.ScalarNode, word, (True, False))
    return word if tag == _TEXT else _values.construct_object(yaml.ScalarNode(tag, word), deep=True)


def _fault(what: str, event: Any) -> yaml.MarkedYAMLError:
    return yaml.composer.ComposerError(None, None, what, event.start_mark)

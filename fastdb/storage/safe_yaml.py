"""YAML without aliases, tags, repeated keys or deep nesting."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import yaml

DEEPEST = 20
"""Collections inside one another. PyYAML's composer in C overflows the stack at 100,000, so only its parser is used."""

# The parser in C is six times as fast, and absent where PyYAML was built without libyaml.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_scalars = yaml.SafeLoader("")


def parse(text: str) -> Any:
    """Return the value of one YAML 1.1 document of mappings, lists and plain values.

    Raises:
        yaml.YAMLError: it is not one YAML document, or contains an alias (a few lines of them expand to more than any
            memory holds), a tag, a repeated key, a collection as a key, or too many levels; usually with the position.
        ValueError: it contains a date that does not exist.
    """
    value, documents = None, 0
    events = iter(yaml.parse(text, Loader=_Loader))
    for event in events:
        documents += isinstance(event, yaml.DocumentStartEvent)
        if documents > 1:
            raise _fault("more than one document", event)
        if isinstance(event, yaml.NodeEvent):
            value = _value(event, events, 0)
    return value


def _value(event: Any, events: Iterator[Any], depth: int) -> Any:
    """Return the value that starts with `event`; its other events are consumed."""
    if isinstance(event, yaml.AliasEvent) or event.tag is not None or depth > DEEPEST:
        raise _fault("aliases, tags and deep nesting are unsupported", event)
    if isinstance(event, yaml.ScalarEvent):
        return _scalar(event.value) if event.implicit[0] else event.value
    items = []
    while not isinstance(item := next(events), yaml.CollectionEndEvent):
        items.append(_value(item, events, depth + 1))
    if isinstance(event, yaml.SequenceStartEvent):
        return items
    keys = items[::2]
    if any(isinstance(key, list | dict) for key in keys) or len(set(keys)) < len(keys):
        raise _fault("a key is a collection or is given twice", item)
    return dict(zip(keys, items[1::2], strict=True))


@functools.lru_cache(4096)
def _scalar(word: str) -> Any:
    """Return the value of a plain scalar: `12`, `1e-6`, `true`, `null`. The cache saves half the time of a list."""
    tag = _scalars.resolve(yaml.ScalarNode, word, (True, False))
    return _scalars.construct_object(yaml.ScalarNode(tag, word), deep=True)


def _fault(reason: str, event: Any) -> yaml.MarkedYAMLError:
    return yaml.composer.ComposerError(None, None, reason, event.start_mark)

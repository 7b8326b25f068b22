"""`{{ item.answer }}`: the references in a grader's texts. Nothing is evaluated: a reference is a path to a value.

Syntax as in OpenAI's guide to graders: a namespace, `item` or `sample`, then keys after dots and positions in
brackets. Reading and filling in take time linear in the text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tuneway.graders.values import Errors, Sample, Ungraded

MAX_RENDERED = 2**20
"""Characters of a text after its references are filled in: many short references could repeat one long value."""

_KEY = r"""[^\s.\[\]{}()|"']+"""
_REFERENCE = re.compile(rf"\s*(item|sample)((?:\.{_KEY}|\[\d{{1,9}}\])+)\s*")
_STEP = re.compile(rf"\.({_KEY})|\[(\d+)\]")
_MAX_REFERENCE = 1024
_MAX_DEPTH = 64


class Malformed(Exception):
    """The text is no template; the message says what is wrong."""


@dataclass(frozen=True, slots=True)
class Reference:
    """`steps` lead from the namespace to the value: keys of objects, positions in arrays."""

    namespace: str
    steps: tuple[str | int, ...]


def parse(text: str) -> Sequence[str | Reference]:
    """The literal texts and the references, in order. Raises Malformed."""
    return list(_parts(text))


def _parts(text: str) -> Iterator[str | Reference]:
    at = 0
    while (start := text.find("{{", at)) >= 0:
        end = text.find("}}", start + 2)
        if end < 0:
            raise Malformed("a '{{' has no '}}' after it")
        if start > at:
            yield text[at:start]
        yield _reference(text[start + 2 : end])
        at = end + 2
    if at < len(text):
        yield text[at:]


def _reference(inside: str) -> Reference:
    found = _REFERENCE.fullmatch(inside) if len(inside) <= _MAX_REFERENCE else None
    if found is None:
        shown = inside.strip()[:60]
        raise Malformed(f"'{{{{{shown}}}}}' is no reference; write '{{{{item.name}}}}' or '{{{{sample.output_text}}}}'")
    steps = tuple(step[1] if step[1] is not None else int(step[2]) for step in _STEP.finditer(found[2]))
    return Reference(found[1], steps)


def render(text: str, sample: Sample) -> str:
    """`text` with its references filled in: strings as they are, other values as JSON.

    Raises Ungraded for a reference that is malformed or leads nowhere, or into a sample that is no JSON, and for a text
    beyond MAX_RENDERED.
    """
    try:
        parts = parse(text)
    except Malformed:
        raise Ungraded(Errors(invalid_variable_error=True)) from None
    rendered, length = [], 0
    for part in parts:
        filled = part if isinstance(part, str) else _shown(_resolve(part, sample))
        length += len(filled)
        if length > MAX_RENDERED:
            raise Ungraded(Errors(truncated_observation_error=True))
        rendered.append(filled)
    return "".join(rendered)


def _resolve(reference: Reference, sample: Sample) -> Any:
    if reference.namespace == "sample" and reference.steps[0] == "output_json" and not sample.is_json:
        raise Ungraded(Errors(sample_parse_error=True))
    value: Any = sample.item if reference.namespace == "item" else sample.sample
    for step in reference.steps:
        try:
            if isinstance(value, list):
                value = value[int(step)]
            elif isinstance(value, Mapping):
                value = value[str(step)]
            else:
                raise LookupError
        except (LookupError, ValueError):
            raise Ungraded(Errors(invalid_variable_error=True)) from None
    return value


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def read_sample(output: str, item: Mapping[str, Any]) -> Sample:
    """What a grader sees of a model's output: its text, and its value where it is JSON."""
    try:
        value = json.loads(output)
        is_json = _is_shallow(value)
        # Half of a surrogate pair, which JSON can escape, has no UTF-8 form.
        json.dumps(value if is_json else None, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        is_json = False
    message = {"role": "assistant", "content": output}
    return Sample(
        item=item,
        sample={
            "output_text": output,
            "output_json": value if is_json else None,
            "output_tools": [],
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        },
        is_json=is_json,
    )


def _is_shallow(value: Any) -> bool:
    """Whether it can be written as JSON again, wherever the call stack stands."""
    waiting = [(value, 0)]
    while waiting:
        found, depth = waiting.pop()
        if depth > _MAX_DEPTH:
            return False
        if isinstance(found, list | dict):
            inner = found.values() if isinstance(found, dict) else found
            waiting.extend((one, depth + 1) for one in inner)
    return True

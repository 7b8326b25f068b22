"""Graders that ask a model: the answer's form is fixed by a JSON schema, so that it is a score or a label."""

from __future__ import annotations

import json
import math
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from tuneway.errors import NotFound, TunewayError
from tuneway.graders.templates import render
from tuneway.graders.values import Errors, LabelModel, Sample, ScoreModel, Ungraded, Usage

Ask = Callable[[str, Mapping[str, Any]], Awaitable[Mapping[str, Any]]]
"""Sends a chat body for a project and returns the chat completion. Raises TunewayError."""

_DETAILS = 1000
"""Characters of what the judge's server says that are passed on."""


async def ask(
    send: Ask, project: str, grader: ScoreModel | LabelModel, sample: Sample, path: str
) -> tuple[float, str, Usage]:
    """The reward, the name of the model that answered, and what it used. `path` is the grader's in the request.

    Raises Ungraded, and NotFound where the project has no such model.
    """
    try:
        completion = await send(project, _body(grader, sample))
    except NotFound as error:
        raise NotFound(error.message, param=f"{path}.model", code=error.code) from None
    except TunewayError as error:
        said = error.message[:_DETAILS].encode(errors="replace").decode()
        raise Ungraded(Errors(model_grader_server_error=True, model_grader_server_error_details=said)) from None
    return _reward(grader, completion), str(completion.get("model") or grader.model), _usage(completion)


def _body(grader: ScoreModel | LabelModel, sample: Sample) -> Mapping[str, Any]:
    if isinstance(grader, ScoreModel):
        result: Mapping[str, Any] = {"type": "number", "minimum": grader.low, "maximum": grader.high}
        sampling = grader.sampling
    else:
        result, sampling = {"type": "string", "enum": list(grader.labels)}, {}
    schema = {
        "type": "object",
        "properties": {"result": result},
        "required": ["result"],
        "additionalProperties": False,
    }
    return {
        "model": grader.model,
        "messages": [
            {"role": message.role, "content": _content(message.content, sample)} for message in grader.messages
        ],
        "response_format": {"type": "json_schema", "json_schema": {"name": "grade", "strict": True, "schema": schema}},
        **sampling,
    }


def _content(content: str | tuple[Mapping[str, Any], ...], sample: Sample) -> str | list[Mapping[str, Any]]:
    return render(content, sample) if isinstance(content, str) else [_part(part, sample) for part in content]


def _part(part: Mapping[str, Any], sample: Sample) -> Mapping[str, Any]:
    match part:
        case {"type": "text", "text": text}:
            return {**part, "text": render(text, sample)}
        case {"type": "image_url", "image_url": image}:
            return {**part, "image_url": {**image, "url": render(image["url"], sample)}}
    return part


def _reward(grader: ScoreModel | LabelModel, completion: Mapping[str, Any]) -> float:
    """A score beyond the range counts as the nearer end of it."""
    try:
        message = completion["choices"][0]["message"]
        if message.get("refusal"):
            raise Ungraded(Errors(model_grader_refusal_error=True))
        result = json.loads(message["content"])["result"]
        if isinstance(grader, LabelModel):
            if result not in grader.labels:
                raise ValueError
            return float(result in grader.passing_labels)
        if isinstance(result, bool) or not math.isfinite(result):
            raise ValueError
    except (LookupError, TypeError, AttributeError, ValueError, OverflowError, RecursionError):
        raise Ungraded(Errors(model_grader_parse_error=True)) from None
    return float(min(max(result, grader.low), grader.high))


def _usage(completion: Mapping[str, Any]) -> Usage:
    said = completion.get("usage") or {}
    cached = (said.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    return Usage(
        said.get("prompt_tokens") or 0, said.get("completion_tokens") or 0, said.get("total_tokens") or 0, cached
    )

"""Graders: they say how good a model's output is, by rules, by a judge model or by code of the client's own.

Whatever keeps one sample from being graded is an answer, a reward of 0 and the reasons in `errors`; what makes a grader
useless for every sample is refused.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping
from typing import Any

from tuneway.errors import InvalidRequest
from tuneway.graders import formula, templates
from tuneway.graders.judge import Ask, ask
from tuneway.graders.sandbox import MAX_SOURCE, Rejected, Sandbox, Unavailable, available
from tuneway.graders.similarity import MAX_COMPARED, METRICS, REFUSED
from tuneway.graders.values import (
    Errors,
    Graded,
    Grader,
    LabelModel,
    Multi,
    Python,
    Sample,
    ScoreModel,
    Single,
    StringCheck,
    TextSimilarity,
    Ungraded,
    Usage,
)

_ROOT = "grader"


class Graders:
    """`ask` sends a judge's chat. `python_graders`: whether the operator lets clients' code run here."""

    def __init__(self, ask: Ask, *, python_graders: bool) -> None:
        self._ask = ask
        self._python_graders = python_graders
        self._sandbox = Sandbox()

    async def validate(self, grader: Grader) -> None:
        """Raises InvalidRequest that names the field. Whether a judge's model exists is not looked up."""
        for path, one in _singles(grader):
            self._require_support(path, one)
            for field, text in _templates(path, one):
                try:
                    templates.parse(text)
                except templates.Malformed as error:
                    raise _invalid(field, f"Invalid template in '{field}': {error}.") from None
            if isinstance(one, Python):
                await self._compile(path, one)
        if isinstance(grader, Multi):
            field = f"{_ROOT}.calculate_output"
            try:
                formula.parse(grader.formula, grader.graders)
            except formula.Malformed as error:
                raise _invalid(field, f"Invalid formula in '{field}': {error}.") from None

    async def run(self, project: str, grader: Grader, output: str, item: Mapping[str, Any]) -> Graded:
        """Grades one `output` of a model. Raises InvalidRequest for a grader that this gateway cannot run."""
        for path, one in _singles(grader):
            self._require_support(path, one)
        sample = templates.read_sample(output, item)
        started = time.monotonic()
        if isinstance(grader, Multi):
            graded = await self._multi(project, grader, sample)
        else:
            graded = await self._single(project, _ROOT, grader, sample)
        reward = 0.0 if graded.errors != Errors() else graded.reward
        return Graded(reward, graded.errors, time.monotonic() - started, graded.sub_rewards, graded.usage, graded.model)

    async def _multi(self, project: str, grader: Multi, sample: Sample) -> Graded:
        try:
            parsed = formula.parse(grader.formula, grader.graders)
        except formula.Malformed:
            return Graded(0, Errors(formula_parse_error=True))
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._single(project, path, one, sample)) for path, one in _singles(grader)]
        except ExceptionGroup as several:
            raise several.exceptions[0] from None
        parts = dict(zip(grader.graders, [task.result() for task in tasks], strict=True))
        errors, reward = Errors(), 0.0
        usage: dict[str, Usage] = {}
        for part in parts.values():
            errors |= part.errors
            for model, used in part.usage.items():
                usage[model] = usage[model] + used if model in usage else used
        rewards = {name: part.reward for name, part in parts.items()}
        try:
            reward = parsed.value(rewards)
        except formula.NoValue:
            errors |= Errors(other_error=True)
        return Graded(reward, errors, sub_rewards=rewards, usage=usage)

    async def _single(self, project: str, path: str, grader: Single, sample: Sample) -> Graded:
        try:
            match grader:
                case StringCheck():
                    return Graded(_check(grader, sample))
                case TextSimilarity():
                    return Graded(await _compare(path, grader, sample))
                case Python():
                    return Graded(await self._sandbox.grade(grader.source, sample))
                case ScoreModel() | LabelModel():
                    reward, model, used = await ask(self._ask, project, grader, sample, path)
                    return Graded(reward, usage={model: used}, model=model)
        except Ungraded as error:
            return Graded(0, error.errors)

    def _require_support(self, path: str, grader: Single) -> None:
        if isinstance(grader, TextSimilarity) and grader.metric in REFUSED:
            field = f"{path}.evaluation_metric"
            raise _invalid(
                field, f"The metric '{grader.metric}' is not available: {REFUSED[grader.metric]}. Use {_METRICS}."
            )
        if not isinstance(grader, Python):
            return
        field = f"{path}.type"
        if not self._python_graders:
            raise _invalid(
                field,
                "This gateway runs no graders of type 'python'. Its operator can turn them on: install bubblewrap and "
                "set `python_graders` to on (--set python_graders=on).",
            )
        if not available():
            raise _invalid(
                field,
                "This gateway runs graders of type 'python' only in bubblewrap, which is not installed. Its operator "
                "can install the package `bubblewrap`.",
            )
        if len(grader.source.encode()) > MAX_SOURCE:
            raise _invalid(f"{path}.source", f"'{path}.source' is larger than {MAX_SOURCE} bytes. Send less.")

    async def _compile(self, path: str, grader: Python) -> None:
        try:
            await self._sandbox.check(grader.source)
        except Rejected as error:
            raise _invalid(f"{path}.source", f"'{path}.source' does not compile: {error}") from None
        except Unavailable as error:
            raise _invalid(
                f"{path}.type", f"The sandbox for graders of type 'python' cannot be made here: {error}"
            ) from None


_METRICS = ", ".join(METRICS)


def asks_a_model(grader: Grader) -> bool:
    """Whether running it sends chat requests."""
    return any(isinstance(single, ScoreModel | LabelModel) for _, single in _singles(grader))


def _singles(grader: Grader) -> Iterator[tuple[str, Single]]:
    """The graders in `grader` with their dotted paths in the request."""
    if not isinstance(grader, Multi):
        yield _ROOT, grader
        return
    for name, one in grader.graders.items():
        yield f"{_ROOT}.graders.{name}" if grader.mapped else f"{_ROOT}.graders", one


def _templates(path: str, grader: Single) -> Iterator[tuple[str, str]]:
    match grader:
        case StringCheck() | TextSimilarity():
            yield f"{path}.input", grader.input
            yield f"{path}.reference", grader.reference
        case ScoreModel() | LabelModel():
            for number, message in enumerate(grader.messages):
                field = f"{path}.input.{number}.content"
                if isinstance(message.content, str):
                    yield field, message.content
                    continue
                for place, part in enumerate(message.content):
                    if "text" in part:
                        yield f"{field}.{place}.text", part["text"]
                    elif "image_url" in part:
                        yield f"{field}.{place}.image_url", part["image_url"]["url"]


def _check(grader: StringCheck, sample: Sample) -> float:
    """`like` and `ilike` ask whether the input contains the reference, as in OpenAI's guide to graders."""
    found, wanted = templates.render(grader.input, sample), templates.render(grader.reference, sample)
    match grader.operation:
        case "eq":
            return float(found == wanted)
        case "ne":
            return float(found != wanted)
        case "like":
            return float(wanted in found)
        case "ilike":
            return float(wanted.casefold() in found.casefold())


async def _compare(path: str, grader: TextSimilarity, sample: Sample) -> float:
    found, wanted = templates.render(grader.input, sample), templates.render(grader.reference, sample)
    for field, text in (("input", found), ("reference", wanted)):
        if len(text) > MAX_COMPARED:
            raise _invalid(
                f"{path}.{field}",
                f"'{path}.{field}' has {len(text)} characters after its references are filled in, and text_similarity "
                f"compares at most {MAX_COMPARED}. Grade a shorter part.",
            )
    return await asyncio.to_thread(METRICS[grader.metric], found, wanted)


def _invalid(param: str, message: str) -> InvalidRequest:
    return InvalidRequest(message, param=param, code="invalid_value")

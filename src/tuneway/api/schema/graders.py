"""Wire models of `/v1/fine_tuning/alpha/graders`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, Discriminator, Field, Tag, ValidationError

from tuneway.api.errors import explain
from tuneway.api.schema.base import Request, absent
from tuneway.errors import InvalidRequest
from tuneway.graders import values
from tuneway.graders.values import Metric, Operation

MAX_GRADERS = 32
"""Graders in a multi grader."""

M = TypeVar("M", bound=Request)

# Every kind of a union has its tag in angle brackets: pydantic puts tags into the places of errors, `_place` takes
# them out again.


def _by_type(*types: str) -> Callable[[Any], str | None]:
    """Tells members of a union apart by their `type`."""

    def tag(value: Any) -> str | None:
        found = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
        return f"<{found}>" if found in types else None

    return tag


def _content_kind(value: Any) -> str | None:
    match value:
        case str():
            return "<text>"
        case list():
            return "<parts>"
    return "<part>"


def _graders_kind(value: Any) -> str:
    """OpenAI's schema has one grader there; its examples and its service have a map from names to graders."""
    one = isinstance(value.get("type"), str) if isinstance(value, dict) else isinstance(value, Request)
    return "<one>" if one else "<map>"


class CacheBreakpoint(Request):
    mode: Literal["explicit"]


class InputText(Request):
    type: Literal["input_text"]
    text: str
    prompt_cache_breakpoint: CacheBreakpoint | None = None

    def to_chat(self) -> dict[str, Any]:
        return {"type": "text", "text": self.text}


class OutputText(Request):
    type: Literal["output_text"]
    text: str

    def to_chat(self) -> dict[str, Any]:
        return {"type": "text", "text": self.text}


class InputImage(Request):
    type: Literal["input_image"]
    image_url: str
    detail: Literal["auto", "low", "high"] | None = None

    def to_chat(self) -> dict[str, Any]:
        detail = {} if self.detail is None else {"detail": self.detail}
        return {"type": "image_url", "image_url": {"url": self.image_url, **detail}}


class Audio(Request):
    data: str
    format: Literal["mp3", "wav"]


class InputAudio(Request):
    type: Literal["input_audio"]
    input_audio: Audio

    def to_chat(self) -> dict[str, Any]:
        return self.model_dump()


Part = Annotated[
    Annotated[InputText, Tag("<input_text>")]
    | Annotated[OutputText, Tag("<output_text>")]
    | Annotated[InputImage, Tag("<input_image>")]
    | Annotated[InputAudio, Tag("<input_audio>")],
    Discriminator(_by_type("input_text", "output_text", "input_image", "input_audio")),
]
PartOrText = Annotated[
    Annotated[str, Tag("<text>")] | Annotated[Part, Tag("<part>")],
    Discriminator(_content_kind),
]
Content = Annotated[
    Annotated[str, Tag("<text>")] | Annotated[Part, Tag("<part>")] | Annotated[list[PartOrText], Tag("<parts>")],
    Discriminator(_content_kind),
]


class EvalItem(Request):
    role: Literal["user", "assistant", "system", "developer"]
    content: Content
    type: Literal["message"] | None = None

    def to_domain(self) -> values.Message:
        if isinstance(self.content, str):
            return values.Message(self.role, self.content)
        parts = self.content if isinstance(self.content, list) else [self.content]
        return values.Message(
            self.role,
            tuple({"type": "text", "text": part} if isinstance(part, str) else part.to_chat() for part in parts),
        )


class SamplingParams(Request):
    """The sampling parameters for the model."""

    seed: int | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    max_completions_tokens: Annotated[int, Field(ge=1)] | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None

    def to_chat(self) -> dict[str, Any]:
        """By the chat API's names, which spell one of them otherwise."""
        given = self.model_dump(exclude_none=True)
        if "max_completions_tokens" in given:
            given["max_completion_tokens"] = given.pop("max_completions_tokens")
        return given


class GraderStringCheck(Request):
    type: Literal["string_check"]
    name: str
    input: str
    reference: str
    operation: Operation

    def to_domain(self, path: str) -> values.StringCheck:
        return values.StringCheck(self.name, self.input, self.reference, self.operation)


class GraderTextSimilarity(Request):
    type: Literal["text_similarity"]
    name: str
    input: str
    reference: str
    evaluation_metric: Metric

    def to_domain(self, path: str) -> values.TextSimilarity:
        return values.TextSimilarity(self.name, self.input, self.reference, self.evaluation_metric)


class GraderPython(Request):
    """`image_tag` names one of OpenAI's images; here it is kept, and the source has Python's standard library alone."""

    type: Literal["python"]
    name: str
    source: str
    image_tag: str | None = None

    def to_domain(self, path: str) -> values.Python:
        return values.Python(self.name, self.source)


class GraderScoreModel(Request):
    type: Literal["score_model"]
    name: str
    model: str
    input: list[EvalItem]
    sampling_params: SamplingParams | None = None
    range: Annotated[list[float], Field(min_length=2, max_length=2, default_factory=lambda: [0.0, 1.0])]

    def to_domain(self, path: str) -> values.ScoreModel:
        """Raises InvalidRequest for a range that holds no score."""
        low, high = self.range
        if low >= high:
            raise _invalid(f"{path}.range", f"'{path}.range' must be [low, high], but {low} is not below {high}.")
        return values.ScoreModel(
            self.name,
            self.model,
            tuple(message.to_domain() for message in self.input),
            low,
            high,
            {} if self.sampling_params is None else self.sampling_params.to_chat(),
        )


class GraderLabelModel(Request):
    type: Literal["label_model"]
    name: str
    model: str
    input: list[EvalItem]
    labels: Annotated[list[str], Field(min_length=1)]
    passing_labels: list[str]

    def to_domain(self, path: str) -> values.LabelModel:
        """Raises InvalidRequest for a passing label that is no label."""
        for label in self.passing_labels:
            if label not in self.labels:
                raise _invalid(
                    f"{path}.passing_labels", f"'{path}.passing_labels' has '{label[:100]}', which is not in 'labels'."
                )
        return values.LabelModel(
            self.name,
            self.model,
            tuple(message.to_domain() for message in self.input),
            tuple(dict.fromkeys(self.labels)),
            tuple(self.passing_labels),
        )


_SINGLE = ("string_check", "text_similarity", "python", "score_model", "label_model")

Single = Annotated[
    Annotated[GraderStringCheck, Tag("<string_check>")]
    | Annotated[GraderTextSimilarity, Tag("<text_similarity>")]
    | Annotated[GraderPython, Tag("<python>")]
    | Annotated[GraderScoreModel, Tag("<score_model>")]
    | Annotated[GraderLabelModel, Tag("<label_model>")],
    Discriminator(_by_type(*_SINGLE)),
]


class GraderMulti(Request):
    type: Literal["multi"]
    name: str
    graders: Annotated[
        Annotated[Single, Tag("<one>")]
        | Annotated[dict[str, Single], Field(min_length=1, max_length=MAX_GRADERS), Tag("<map>")],
        Discriminator(_graders_kind),
    ]
    calculate_output: str

    def to_domain(self, path: str) -> values.Multi:
        """One grader alone goes by its own name in the formula. Raises InvalidRequest."""
        if isinstance(self.graders, dict):
            named = {name: one.to_domain(f"{path}.graders.{name}") for name, one in self.graders.items()}
            return values.Multi(self.name, named, self.calculate_output)
        one = {self.graders.name: self.graders.to_domain(f"{path}.graders")}
        return values.Multi(self.name, one, self.calculate_output, mapped=False)


Grader = Annotated[
    Annotated[GraderStringCheck, Tag("<string_check>")]
    | Annotated[GraderTextSimilarity, Tag("<text_similarity>")]
    | Annotated[GraderPython, Tag("<python>")]
    | Annotated[GraderScoreModel, Tag("<score_model>")]
    | Annotated[GraderLabelModel, Tag("<label_model>")]
    | Annotated[GraderMulti, Tag("<multi>")],
    Discriminator(_by_type(*_SINGLE, "multi")),
]


class RunGraderRequest(Request):
    grader: Grader
    model_sample: str
    item: dict[str, Any] = absent()


class ValidateGraderRequest(Request):
    grader: Grader


def parse(model: type[M], body: Mapping[str, Any]) -> M:
    """`body` as `model`. Raises InvalidRequest that names the first field at fault, also inside a grader."""
    try:
        return model.model_validate(body)
    except ValidationError as error:
        raise explain([_told(found) for found in error.errors(include_url=False)]) from None


def _told(error: Mapping[str, Any]) -> Mapping[str, Any]:
    """One of pydantic's errors without our tags; a union of which no member fits is an error of `type`."""
    place = _place(error["loc"])
    if error["type"] != "union_tag_not_found":
        return {**error, "loc": place}
    given = error["input"]
    if not isinstance(given, dict):
        return {**error, "type": "model_type", "loc": place}
    if "type" not in given:
        return {"type": "missing", "loc": (*place, "type")}
    return {
        "type": "literal_error",
        "loc": (*place, "type"),
        "input": given["type"],
        "ctx": {"expected": _kinds(place)},
    }


def _place(loc: tuple[int | str, ...]) -> tuple[int | str, ...]:
    return tuple(step for step in loc if not (isinstance(step, str) and step.startswith("<") and step.endswith(">")))


def _kinds(place: tuple[int | str, ...]) -> str:
    """The types that a member may have: parts of contents stand in the array of messages, graders in none."""
    if any(isinstance(step, int) for step in place):
        kinds: tuple[str, ...] = ("input_text", "output_text", "input_image", "input_audio")
    else:
        kinds = _SINGLE if "graders" in place else (*_SINGLE, "multi")
    return ", ".join(f"'{kind}'" for kind in kinds)


def _invalid(param: str, message: str) -> InvalidRequest:
    return InvalidRequest(message, param=param, code="invalid_value")


# ------------------------------------------------------------------------------------------------------ responses


class GraderErrors(BaseModel):
    formula_parse_error: bool
    sample_parse_error: bool
    truncated_observation_error: bool
    unresponsive_reward_error: bool
    invalid_variable_error: bool
    other_error: bool
    python_grader_server_error: bool
    python_grader_server_error_type: str | None
    python_grader_runtime_error: bool
    python_grader_runtime_error_details: str | None
    model_grader_server_error: bool
    model_grader_refusal_error: bool
    model_grader_parse_error: bool
    model_grader_server_error_details: str | None


class GraderTokenUsage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    cached_tokens: int


class GraderMetadata(BaseModel):
    """`execution_time` is in seconds, `token_usage` the total of all judges, null where none was asked."""

    name: str
    type: str
    errors: GraderErrors
    execution_time: float
    scores: dict[str, float]
    token_usage: int | None
    sampled_model_name: str | None


class RunGraderResponse(BaseModel):
    reward: float
    metadata: GraderMetadata
    sub_rewards: dict[str, float]
    model_grader_token_usage_per_model: dict[str, GraderTokenUsage]

    @classmethod
    def of(cls, grader: values.Grader, graded: values.Graded) -> RunGraderResponse:
        return cls(
            reward=graded.reward,
            metadata=GraderMetadata(
                name=grader.name,
                type=grader.type,
                errors=GraderErrors(**asdict(graded.errors)),
                execution_time=graded.seconds,
                scores=dict(graded.sub_rewards),
                token_usage=sum(used.total_tokens for used in graded.usage.values()) if graded.usage else None,
                sampled_model_name=graded.model,
            ),
            sub_rewards=dict(graded.sub_rewards),
            model_grader_token_usage_per_model={
                model: GraderTokenUsage(**asdict(used)) for model, used in graded.usage.items()
            },
        )


class ValidateGraderResponse(BaseModel):
    """The grader with its defaults filled in."""

    grader: Grader

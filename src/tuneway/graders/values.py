"""What graders are and what they answer, as frozen values. Their form on the wire is `tuneway.api.schema.graders`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

Operation = Literal["eq", "ne", "like", "ilike"]
Metric = Literal[
    "cosine",
    "fuzzy_match",
    "bleu",
    "gleu",
    "meteor",
    "rouge_1",
    "rouge_2",
    "rouge_3",
    "rouge_4",
    "rouge_5",
    "rouge_l",
]


@dataclass(frozen=True, slots=True)
class StringCheck:
    name: str
    input: str
    reference: str
    operation: Operation
    type: Literal["string_check"] = "string_check"


@dataclass(frozen=True, slots=True)
class TextSimilarity:
    name: str
    input: str
    reference: str
    metric: Metric
    type: Literal["text_similarity"] = "text_similarity"


@dataclass(frozen=True, slots=True)
class Python:
    name: str
    source: str
    type: Literal["python"] = "python"


@dataclass(frozen=True, slots=True)
class Message:
    """`content` is a template, or chat content parts of which `text` and `image_url.url` are templates."""

    role: str
    content: str | tuple[Mapping[str, Any], ...]


@dataclass(frozen=True, slots=True)
class ScoreModel:
    """`sampling` has the names of the chat API. The score lies in `low` … `high`."""

    name: str
    model: str
    messages: tuple[Message, ...]
    low: float = 0
    high: float = 1
    sampling: Mapping[str, Any] = field(default_factory=dict)
    type: Literal["score_model"] = "score_model"


@dataclass(frozen=True, slots=True)
class LabelModel:
    name: str
    model: str
    messages: tuple[Message, ...]
    labels: tuple[str, ...]
    passing_labels: tuple[str, ...]
    type: Literal["label_model"] = "label_model"


Single = StringCheck | TextSimilarity | Python | ScoreModel | LabelModel


@dataclass(frozen=True, slots=True)
class Multi:
    """`graders` by the names that `formula` calls them. `mapped` is false where the request gave one grader bare."""

    name: str
    graders: Mapping[str, Single]
    formula: str
    mapped: bool = True
    type: Literal["multi"] = "multi"


Grader = Single | Multi


@dataclass(frozen=True, slots=True)
class Errors:
    """Why a grade could not be given; the names are OpenAI's (`RunGraderResponse.metadata.errors`)."""

    formula_parse_error: bool = False
    sample_parse_error: bool = False
    truncated_observation_error: bool = False
    unresponsive_reward_error: bool = False
    invalid_variable_error: bool = False
    other_error: bool = False
    python_grader_server_error: bool = False
    python_grader_server_error_type: str | None = None
    python_grader_runtime_error: bool = False
    python_grader_runtime_error_details: str | None = None
    model_grader_server_error: bool = False
    model_grader_refusal_error: bool = False
    model_grader_parse_error: bool = False
    model_grader_server_error_details: str | None = None

    def __or__(self, other: Errors) -> Errors:
        """Both together; of two details the first."""
        return Errors(**{one.name: getattr(self, one.name) or getattr(other, one.name) for one in fields(self)})


class Ungraded(Exception):
    """There is no grade, and `errors` says why. It ends a grader, never a request."""

    def __init__(self, errors: Errors) -> None:
        super().__init__()
        self.errors = errors


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of a judge's answer."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    cached_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(**{one.name: getattr(self, one.name) + getattr(other, one.name) for one in fields(self)})


@dataclass(frozen=True, slots=True)
class Graded:
    """The grade of one sample. `reward` is 0 wherever `errors` has something; `seconds` is the time that it took."""

    reward: float
    errors: Errors = Errors()
    seconds: float = 0
    sub_rewards: Mapping[str, float] = field(default_factory=dict)
    usage: Mapping[str, Usage] = field(default_factory=dict)
    model: str | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """What templates and python graders see: `item`, the row of the data set, and `sample`, what the model said."""

    item: Mapping[str, Any]
    sample: Mapping[str, Any]
    is_json: bool

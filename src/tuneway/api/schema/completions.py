"""Stored chat completions on the wire, and the training files made of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from tuneway import types
from tuneway.api.dialect import Dialect
from tuneway.api.schema.base import Metadata, Request, Text, absent
from tuneway.api.schema.files import FileExpirationAfter, Filename, OpenAIFile
from tuneway.completions import Outcome, Selection

MAX_SELECTED = 50000


class UpdateChatCompletionRequest(Request):
    metadata: Metadata | None


class StoredCompletions(Request):
    """Which completions become examples: those that fit all that is given, oldest first."""

    model: Text = absent()
    metadata: Metadata = absent()
    ids: Annotated[list[Text], Field(min_length=1, max_length=MAX_SELECTED)] = absent()
    after: Text = absent()
    limit: Annotated[int, Field(ge=1, le=MAX_SELECTED)] = MAX_SELECTED
    choice: Annotated[int, Field(ge=0, le=127)] = 0

    def to_domain(self) -> Selection:
        return Selection(
            model=self.model,
            metadata=self.metadata,
            ids=None if self.ids is None else tuple(self.ids),
            after=self.after,
            limit=self.limit,
            choice=self.choice,
        )


class FileSource(Request):
    stored_completions: StoredCompletions


class CreateFileFromCompletionsRequest(Request):
    """A training file of chat completions that were sent with `store: true`."""

    purpose: Literal["fine-tune"]
    tuneway: FileSource
    filename: Filename = "stored_completions.jsonl"
    expires_after: FileExpirationAfter = absent()


# ----------------------------------------------------------------------------------------------------------- responses


class _AsStored(BaseModel):
    """What an upstream said besides is shown as well."""

    model_config = ConfigDict(extra="allow")


class CompletionMessage(_AsStored):
    role: Literal["assistant"]
    content: str | None = None
    refusal: str | None = None


class CompletionChoice(_AsStored):
    index: int
    message: CompletionMessage
    finish_reason: str
    logprobs: dict[str, Any] | None = None


class ChatCompletion(_AsStored):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    metadata: dict[str, str] | None

    @classmethod
    def of(cls, completion: types.Completion) -> ChatCompletion:
        return cls.model_validate({**completion.response, "metadata": completion.metadata})


class ChatCompletionList(BaseModel):
    object: Literal["list"]
    data: list[ChatCompletion]
    first_id: str | None
    last_id: str | None
    has_more: bool


class ChatCompletionStoreMessage(_AsStored):
    """A message of the request. `content_parts` has the parts where the content was a list; `content` is null then."""

    id: str
    role: str
    content: str | None
    refusal: str | None
    content_parts: list[dict[str, Any]] | None

    @classmethod
    def of(cls, completion: types.Completion, index: int) -> ChatCompletionStoreMessage:
        message: Mapping[str, Any] = completion.request["messages"][index]
        content, refusal = message.get("content"), message.get("refusal")
        parts = content if isinstance(content, list) else None
        shown = {
            "id": f"{completion.id}-{index}",
            "content": None if parts is not None else content,
            "refusal": refusal if isinstance(refusal, str) else None,
            "content_parts": parts,
        }
        return cls.model_validate({**message, **shown})


class ChatCompletionMessageList(BaseModel):
    object: Literal["list"]
    data: list[ChatCompletionStoreMessage]
    first_id: str | None
    last_id: str | None
    has_more: bool


class FromCompletions(BaseModel):
    """How many completions became examples, and how many did not, by reason."""

    examples: int
    left_out: dict[str, int]


class FileFromCompletions(OpenAIFile):
    tuneway: FromCompletions

    @classmethod
    def made(cls, file: types.File, outcome: Outcome, dialect: Dialect) -> FileFromCompletions:
        fields = OpenAIFile.of(file, dialect).model_dump(exclude_unset=True)
        counts = FromCompletions(examples=outcome.examples, left_out=dict(outcome.left_out))
        return cls(**fields, tuneway=counts)

"""The completions service: chat completions that were sent with `store: true`, and training files made of them.

It knows requests and answers as JSON objects, nothing of how they came here. An answer counts as a completion when it
has the form that every client reads; what else an upstream put into it is kept as it is.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from tuneway.errors import CompletionNotFound, InvalidRequest, UpstreamError
from tuneway.files import Files
from tuneway.store import Store, Tx
from tuneway.store import completions as rows
from tuneway.types import Completion, File, Origin, Page

MAX_DEPTH = 64
"""Objects and arrays inside each other; a chat with a JSON schema in it does not come near."""

PIECE = 256 * 1024
"""Bytes of a training file that are made at a time, give or take a line."""
SPAN = 256
"""Completions that are looked at in one read of the store."""

_BLANK_LINE = re.compile(rb"\r?\n\r?\n|\r\r")
_REPLACED = frozenset({"role", "id", "type", "index"})
"""Fields of a delta that come whole; the pieces of every other text are joined."""
_MERGED = frozenset({"delta", "logprobs"})
"""Fields of a streamed choice that come in pieces."""


class _Message(msgspec.Struct):
    role: Literal["assistant"]
    content: str | None = None
    refusal: str | None = None


class _Choice(msgspec.Struct):
    index: int
    message: _Message
    finish_reason: str
    logprobs: dict[str, Any] | None = None


class _Answer(msgspec.Struct):
    """What makes an object a chat completion."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[_Choice]


class _Delta(msgspec.Struct):
    index: int
    delta: dict[str, Any] | None = None
    logprobs: dict[str, Any] | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Delta] | None = None


@dataclass(frozen=True, slots=True)
class Selection:
    """Which stored completions become a training file: those that fit all that is given, oldest first."""

    model: str | None = None
    metadata: Mapping[str, str] | None = None
    ids: tuple[str, ...] | None = None
    after: str | None = None
    limit: int = 50000
    choice: int = 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """How many completions became examples, and how many did not, by reason."""

    examples: int
    left_out: Mapping[str, int]


class Completions:
    def __init__(self, store: Store, files: Files) -> None:
        self._store = store
        self._files = files

    async def record(self, project: str, body: bytes) -> Recording:
        """Takes the body of a chat request, of which `metadata` has been checked, before it is sent upstream.

        Raises InvalidRequest for one that could not be shown again.
        """
        return Recording(self._store, project, await asyncio.to_thread(_request, body))

    async def list(
        self,
        project: str,
        *,
        after: str | None,
        limit: int,
        order: Literal["asc", "desc"],
        model: str | None,
        metadata: Mapping[str, str] | None,
    ) -> Page[Completion]:
        """One page, an empty one when `after` is none of them; `metadata` {} asks for those without any."""
        page = await self._store.read(
            rows.page, project, after=after, limit=limit, order=order, model=model, metadata=metadata
        )
        return Page((), has_more=False) if page is None else page

    async def get(self, project: str, completion_id: str) -> Completion:
        """Raises CompletionNotFound."""
        completion = await self._store.read(rows.get, project, completion_id)
        if completion is None:
            raise CompletionNotFound(completion_id)
        return completion

    async def update(self, project: str, completion_id: str, metadata: Mapping[str, str] | None) -> Completion:
        """Replaces the metadata. Raises CompletionNotFound."""
        completion = await self._store.write(rows.set_metadata, project, completion_id, metadata)
        if completion is None:
            raise CompletionNotFound(completion_id)
        return completion

    async def delete(self, project: str, completion_id: str) -> None:
        """Deletes it for good; a file that was made of it stays. Raises CompletionNotFound."""
        if not await self._store.write(rows.remove, project, completion_id):
            raise CompletionNotFound(completion_id)

    async def make_file(
        self, project: str, selection: Selection, *, filename: str, expires_after: int | None, origin: Origin
    ) -> tuple[File, Outcome]:
        """A file of purpose `fine-tune` with one line for each completion, the same bytes for the same completions.

        `expires_after` is in seconds. Raises InvalidRequest when an id is unknown or no completion can be an example,
        PayloadTooLarge and OutOfSpace.
        """
        at = await self._store.read(_start, project, selection)
        left, examples, left_out = selection.limit, 0, Counter[str]()
        incoming = self._files.receive()
        try:
            while left:
                span = await self._store.read(_span, project, selection, at, min(left, SPAN))
                if span.seen == 0:
                    break
                if span.lines:
                    await incoming.write(span.lines)
                at, left = span.last, left - span.seen
                examples += span.seen - span.left_out.total()
                left_out += span.left_out
            if examples == 0:
                raise _no_examples(left_out)
            file = await incoming.commit(
                project, filename=filename, purpose="fine-tune", expires_after=expires_after, origin=origin
            )
        except BaseException:
            await incoming.discard()
            raise
        return file, Outcome(examples, dict(sorted(left_out.items())))


class Recording:
    """One request whose answer will be stored; see `proxy.Recording`."""

    def __init__(self, store: Store, project: str, request: dict[str, Any]) -> None:
        self._store = store
        self._project = project
        self._request = request

    async def whole(self, answer: bytes) -> None:
        """Raises UpstreamError for what is no chat completion, and OutOfSpace."""
        await self._insert(await asyncio.to_thread(_whole_answer, answer))

    async def stream(self, events: bytes) -> None:
        """Raises as `whole` does. A stream with an error in it is no answer: the client has been told already."""
        answer = await asyncio.to_thread(_streamed_answer, events)
        if answer is not None:
            await self._insert(answer)

    async def _insert(self, answer: dict[str, Any]) -> None:
        completion = Completion(
            seq=0,
            id=answer["id"],
            project_id=self._project,
            created_at=int(time.time()),
            model=answer["model"],
            request=self._request,
            response=answer,
            metadata=self._request.get("metadata"),
        )
        if await self._store.write(rows.insert, completion) is None:
            raise UpstreamError(
                "The server of this model gave its answer the id of an earlier one, so it was not stored. Send the "
                "request again, or without 'store'."
            )


# ------------------------------------------------------------------------------------------ what is taken, and what not


def _request(body: bytes) -> dict[str, Any]:
    try:
        request = msgspec.json.decode(body, type=dict[str, Any])
        deep = _is_deep(request)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"The body is not valid JSON: {error}.") from None
    except RecursionError:
        deep = True
    if deep:
        raise InvalidRequest(
            f"The body is nested too deeply to be stored: at most {MAX_DEPTH} objects or arrays inside each other."
        )
    messages = request.get("messages")
    if not isinstance(messages, list) or not messages:
        raise InvalidRequest(
            "Invalid type for 'messages': expected an array of at least one message.", param="messages"
        )
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise InvalidRequest(
                f"Invalid 'messages[{index}]': expected an object with a 'role'.", param=f"messages[{index}]"
            )
        content = message.get("content")
        if isinstance(content, list) and all(isinstance(part, dict) for part in content):
            continue
        if content is not None and not isinstance(content, str):
            param = f"messages[{index}].content"
            raise InvalidRequest(f"Invalid type for '{param}': expected a string or an array of objects.", param=param)
    return request


def _whole_answer(answer: bytes) -> dict[str, Any]:
    try:
        return _checked(msgspec.json.decode(answer))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _not_a_completion(error) from error


def _streamed_answer(events: bytes) -> dict[str, Any] | None:
    """The answer that a stream amounts to; None for one with an error in it."""
    try:
        chunks = list(_chunks(events))
        if any(chunk.get("error") for chunk in chunks):
            return None
        return _checked(assemble(chunks))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _not_a_completion(error) from error


def _checked(answer: Any) -> dict[str, Any]:
    msgspec.convert(answer, _Answer)
    if _is_deep(answer):
        raise RecursionError("it is nested too deeply")
    found: dict[str, Any] = answer
    return found


def _not_a_completion(error: Exception) -> UpstreamError:
    return UpstreamError(
        f"The server of this model answered with no chat completion, so it was not stored ({error}). Send the request "
        "without 'store' to get the answer as it is."
    )


def _is_deep(value: Any) -> bool:
    layer = [value]
    for _ in range(MAX_DEPTH + 1):
        inner = [iter(one.values()) if isinstance(one, dict) else iter(one) for one in layer]
        layer = [one for values in inner for one in values if isinstance(one, dict | list)]
        if not layer:
            return False
    return True


# ------------------------------------------------------------------------------------------------------------- streams


def _chunks(events: bytes) -> Iterator[dict[str, Any]]:
    for event in _BLANK_LINE.split(events):
        lines = [line[5:].removeprefix(b" ") for line in event.splitlines() if line.startswith(b"data:")]
        if lines:
            yield msgspec.json.decode(b"\n".join(lines), type=dict[str, Any])


def assemble(chunks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The chat completion that a stream of `chat.completion.chunk` amounts to, as one request for it would have got it.

    Raises msgspec.ValidationError for chunks of another form.
    """
    answer: dict[str, Any] = {}
    choices: dict[int, dict[str, Any]] = {}
    for chunk in chunks:
        msgspec.convert(chunk, _Chunk)
        answer |= {name: value for name, value in chunk.items() if value is not None}
        for part in chunk.get("choices") or []:
            choice = choices.setdefault(
                part["index"],
                {
                    "index": part["index"],
                    "message": {"role": "assistant", "content": None, "refusal": None, "annotations": []},
                    "logprobs": None,
                    "finish_reason": None,
                },
            )
            _merge(choice["message"], part.get("delta") or {})
            if part.get("logprobs"):
                choice["logprobs"] = choice["logprobs"] or {"content": None, "refusal": None}
                _merge(choice["logprobs"], part["logprobs"])
            choice |= {name: value for name, value in part.items() if name not in _MERGED and value is not None}
    answer["object"] = "chat.completion"
    answer.pop("obfuscation", None)
    answer["choices"] = [_joined(choices[index]) for index in sorted(choices)]
    return answer


class _Pieces(list[str]):
    """A text on its way: joined once, as adding to a long one again and again takes quadratic time."""


class _Numbered(dict[int, Any]):
    """A list on its way, whose items come in parts with an `index`."""


def _merge(into: dict[str, Any], delta: Mapping[str, Any]) -> None:
    for name, value in delta.items():
        known = into.get(name)
        if value is None:
            into.setdefault(name, None)
        elif isinstance(value, str) and name not in _REPLACED:
            if not isinstance(known, _Pieces):
                into[name] = known = _Pieces()
            known.append(value)
        elif isinstance(value, dict):
            if not isinstance(known, dict):
                into[name] = known = {}
            _merge(known, value)
        elif isinstance(value, list) and all(
            isinstance(one, dict) and isinstance(one.get("index"), int) for one in value
        ):
            if not isinstance(known, _Numbered):
                into[name] = known = _Numbered()
            for one in value:
                _merge(known.setdefault(one["index"], {}), {key: one[key] for key in one if key != "index"})
        elif isinstance(value, list):
            if not isinstance(known, list):
                into[name] = known = []
            known.extend(value)
        else:
            into[name] = value


def _joined(value: Any) -> Any:
    if isinstance(value, _Pieces):
        return "".join(value)
    if isinstance(value, _Numbered):
        return [_joined(value[index]) for index in sorted(value)]
    if isinstance(value, dict):
        return {name: _joined(one) for name, one in value.items()}
    return value


# ------------------------------------------------------------------------------------------------------ training files


@dataclass(slots=True)
class _Span:
    """A stretch of the completions: its lines, and where it ended."""

    last: int
    lines: bytes = b""
    seen: int = 0
    left_out: Counter[str] = field(default_factory=Counter)


def _start(tx: Tx, project: str, selection: Selection) -> int:
    """The `seq` behind which a selection begins. Raises InvalidRequest for unknown ids."""
    where = "tuneway.stored_completions"
    missing = rows.unknown(tx, project, selection.ids or ())
    if missing is not None:
        raise InvalidRequest(f"There is no stored completion {missing!r}.", param=f"{where}.ids")
    if selection.after is None:
        return 0
    seq = rows.seq_of(tx, project, selection.after)
    if seq is None:
        raise InvalidRequest(
            f"There is no stored completion {selection.after!r} to continue after.", param=f"{where}.after"
        )
    return seq


def _span(tx: Tx, project: str, selection: Selection, after: int, limit: int) -> _Span:
    # Here, as tokenizers come with it: only a gateway that makes such files loads them.
    from tuneway.dataset.captured import NoExample, example_line

    lines, span = bytearray(), _Span(after)
    for completion in rows.each(
        tx,
        project,
        after=after,
        limit=limit,
        model=selection.model,
        metadata=selection.metadata,
        ids=selection.ids,
    ):
        span.last, span.seen = completion.seq, span.seen + 1
        try:
            lines += example_line(completion.request, completion.response, selection.choice)
        except NoExample as no:
            span.left_out[no.reason] += 1
        if len(lines) >= PIECE:
            break
    span.lines = bytes(lines)
    return span


def _no_examples(left_out: Counter[str]) -> InvalidRequest:
    if not left_out:
        return InvalidRequest(
            "No stored completion fits; send chat requests with 'store': true first, or ask for fewer conditions.",
            param="tuneway.stored_completions",
        )
    reasons = ", ".join(f"{reason} ({count})" for reason, count in sorted(left_out.items()))
    return InvalidRequest(
        f"None of the {left_out.total()} completions that fit can be a training example: {reasons}.",
        param="tuneway.stored_completions",
    )

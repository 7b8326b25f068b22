"""The ASGI app of the inference child: OpenAI's chat endpoint over an engine, for one gateway on a private socket.

It knows the token of its gateway, one renderer and one engine; accounts, names and routes are the gateway's.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import AsyncGenerator, Collection, Coroutine, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Protocol

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from tuneway.dataset.messages import InvalidMessages
from tuneway.dataset.tools import Tools
from tuneway.errors import (
    ChatModelNotFound,
    Forbidden,
    InternalError,
    InvalidRequest,
    MethodNotAllowed,
    PayloadTooLarge,
    TooManyRequests,
    TunewayError,
    UnknownRoute,
)
from tuneway.inference.answer import DONE, Answer, Message, error_event, logprobs_object, usage_object
from tuneway.inference.engine import Engine, Piece, Sampling, Tokens
from tuneway.inference.grammar import Trial
from tuneway.inference.reading import End, Part, Text, read
from tuneway.inference.request import ChatRequest, parse

MAX_IN_FLIGHT = 128
"""Requests that are answered or wait for it; one more gets a 429 at once instead of a place far behind."""

MAX_BODY_BYTES = 8 * 2**20
"""Far beyond any context; a larger body cannot be a prompt that fits."""

log = logging.getLogger(__name__)


class PromptRenderer(Tokens, Protocol):
    """What the app needs of `tuneway.dataset.template.Renderer`."""

    vocab_size: int

    def prompt(self, messages: Sequence[Mapping[str, Any]], tools: Tools) -> list[int]: ...


def build_app(
    engine: Engine,
    renderer: PromptRenderer,
    adapters: Collection[str],
    *,
    context_length: int,
    token: str,
    max_in_flight: int = MAX_IN_FLIGHT,
) -> Starlette:
    """`context_length` is in tokens, prompt and answer together. `token` is what the gateway sends as bearer."""
    chat = ChatCompletions(engine, renderer, frozenset(adapters), context_length, token, max_in_flight)

    async def health(_: Request) -> Response:
        """`idle_seconds` since the last answer ended; 0 while there is one."""
        idle = 0.0 if chat.in_flight else time.monotonic() - chat.last_used
        return JSONResponse({"in_flight": chat.in_flight, "idle_seconds": round(idle, 3)})

    routes = [Route("/v1/chat/completions", chat, methods=["POST"]), Route("/healthz", health)]
    return Starlette(routes=routes, exception_handlers={404: _unknown_route, 405: _wrong_method})


@dataclass(frozen=True, slots=True)
class _Work:
    """One request, ready for the engine."""

    request: ChatRequest
    prompt: Sequence[int]
    max_tokens: int
    adapter: str | None
    cache_key: str
    answer: Answer


class ChatCompletions:
    """The endpoint, as a bare ASGI app: the answer of a client that left must stop, and only `receive` tells that."""

    def __init__(
        self,
        engine: Engine,
        renderer: PromptRenderer,
        adapters: frozenset[str],
        context_length: int,
        token: str,
        max_in_flight: int,
    ) -> None:
        self.in_flight = 0
        self.last_used = time.monotonic()
        self._engine = engine
        self._renderer = renderer
        self._adapters = adapters
        self._context_length = context_length
        self._authorization = f"Bearer {token}".encode()
        self._max_in_flight = max_in_flight
        self._trial = Trial()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        self.in_flight += 1
        try:
            work = await self._accept(request)
            headers = {"x-tuneway-ignored": ", ".join(work.request.ignored)} if work.request.ignored else {}
            respond = self._stream if work.request.stream else self._complete
            await _unless_gone(receive, respond(work, headers, scope, receive, send))
        except TunewayError as error:
            await _error_response(error)(scope, receive, send)
        except ClientDisconnect:
            pass  # it left while it sent its request: there is nobody to answer
        finally:
            self.in_flight -= 1
            self.last_used = time.monotonic()

    async def _accept(self, request: Request) -> _Work:
        sent = request.headers.get("authorization", "").encode()
        if not hmac.compare_digest(sent, self._authorization):
            raise Forbidden("This engine answers its own gateway only.")
        adapter = request.headers.get("x-tuneway-adapter") or None
        model = request.headers.get("x-tuneway-model") or adapter or "base"
        if adapter is not None and adapter not in self._adapters:
            raise ChatModelNotFound(model)
        if self.in_flight > self._max_in_flight:
            raise TooManyRequests(
                f"{self._max_in_flight} requests to this model's engine are under way. Please try again in "
                f"{TooManyRequests.retry_after}s."
            )
        chat = parse(await _body(request), self._renderer.vocab_size)
        try:
            prompt = await asyncio.to_thread(self._renderer.prompt, chat.messages, chat.tools)
        except InvalidMessages as error:
            raise InvalidRequest(error.message, param=error.param, code="invalid_value") from None
        await chat.form.check(self._trial)
        cache_key = request.headers.get("x-tuneway-project", "")
        answer = Answer(model, self._engine.fingerprint)
        return _Work(chat, prompt, self._max_tokens(chat, len(prompt)), adapter, cache_key, answer)

    def _max_tokens(self, chat: ChatRequest, n_prompt: int) -> int:
        limit = self._context_length
        if n_prompt >= limit:
            complaint = f"your messages resulted in {n_prompt} tokens. Please reduce the length of the messages."
        elif chat.max_tokens is not None and n_prompt + chat.max_tokens > limit:
            complaint = (
                f"you requested {n_prompt + chat.max_tokens} tokens ({n_prompt} in the messages, {chat.max_tokens} in "
                "the completion). Please reduce the length of the messages or completion."
            )
        else:
            return chat.max_tokens or limit - n_prompt
        message = f"This model's maximum context length is {limit} tokens. However, {complaint}"
        raise InvalidRequest(message, param="messages", code="context_length_exceeded")

    async def _complete(
        self, work: _Work, headers: Mapping[str, str], scope: Scope, receive: Receive, send: Send
    ) -> None:
        choices = []
        usage = _Usage(len(work.prompt))
        for index in range(work.request.n):
            message = _message(work.request)
            async with aclosing(self._parts(work, index)) as parts:
                async for part in parts:
                    if isinstance(part, End):
                        usage.add(part.last)
                        choices.append(message.choice(index, part.finish_reason, work.request.top_logprobs))
                    else:
                        message.delta(part)
        await JSONResponse(work.answer.completion(choices, usage.total()), headers=headers)(scope, receive, send)

    async def _stream(
        self, work: _Work, headers: Mapping[str, str], scope: Scope, receive: Receive, send: Send
    ) -> None:
        started = False
        try:
            async with aclosing(self._events(work)) as events:
                async for data in events:
                    if not started:  # the engine has taken the prompt on; what failed before it has its own status
                        await send(_stream_start(headers))
                        started = True
                    await send({"type": "http.response.body", "body": data, "more_body": True})
        except Exception as error:
            if not started:
                raise
            known = error if isinstance(error, TunewayError) else InternalError("The engine failed; its log says how.")
            log.error("a stream broke", exc_info=error)
            await send({"type": "http.response.body", "body": error_event(known), "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def _events(self, work: _Work) -> AsyncGenerator[bytes]:
        answer, request, top = work.answer, work.request, work.request.top_logprobs
        usage = _Usage(len(work.prompt))
        for index in range(request.n):
            message, first = _message(request), True
            async with aclosing(self._parts(work, index)) as parts:
                async for part in parts:
                    if first:
                        yield answer.chunk(index, message.opening(), include_usage=request.include_usage)
                        first = False
                    if isinstance(part, End):
                        usage.add(part.last)
                        reason = part.finish_reason
                        yield answer.chunk(index, {}, finish_reason=reason, include_usage=request.include_usage)
                    elif not isinstance(part, Text) or part.text or part.logprobs:
                        found = part.logprobs if isinstance(part, Text) else ()
                        logprobs = None if top is None else logprobs_object(found, top)
                        delta = message.delta(part)
                        yield answer.chunk(index, delta, logprobs=logprobs, include_usage=request.include_usage)
        if request.include_usage:
            yield answer.usage_chunk(usage.total())
        yield DONE

    def _parts(self, work: _Work, index: int) -> AsyncGenerator[Part]:
        """The parts of choice `index`. Choices come one after the other: together they would gain little on a CPU,
        and this way each takes the prompt from the cache."""
        request = work.request
        sampling = Sampling(
            temperature=request.temperature,
            top_p=request.top_p,
            cache_key=work.cache_key,
            presence_penalty=request.presence_penalty,
            frequency_penalty=request.frequency_penalty,
            logit_bias=request.logit_bias,
            seed=None if request.seed is None else request.seed + index,
            stop=() if request.form.calls else request.stop,
            top_logprobs=request.top_logprobs,
            grammar=request.form.grammar,
        )
        pieces = self._engine.generate(work.prompt, work.adapter, work.max_tokens, sampling)
        return read(pieces, request.form, request.stop)


def _message(request: ChatRequest) -> Message:
    return Message(can_call=request.form.calls, legacy=request.form.legacy)


class _Usage:
    """Sums the counts of all choices; the prompt counts once."""

    def __init__(self, prompt_tokens: int) -> None:
        self._prompt = prompt_tokens
        self._cached: int | None = None
        self._completion = 0

    def add(self, last: Piece) -> None:
        self._completion += last.completion_tokens
        if self._cached is None:  # later choices find the prompt of the first
            self._cached = last.cached_tokens

    def total(self) -> dict[str, Any]:
        return usage_object(self._prompt, self._cached or 0, self._completion)


async def _unless_gone(receive: Receive, work: Coroutine[Any, Any, None]) -> None:
    """Runs `work` to its end, or cancels it when the client leaves (uvicorn's `send` does not say so)."""
    task = asyncio.create_task(work)
    gone = asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _body(request: Request) -> bytes:
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > MAX_BODY_BYTES:
            raise PayloadTooLarge(f"The request is larger than {MAX_BODY_BYTES // 2**20} MiB. Send fewer messages.")
    return bytes(body)


def _stream_start(headers: Mapping[str, str]) -> dict[str, Any]:
    shown = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache", **headers}
    encoded = [(name.encode(), value.encode()) for name, value in shown.items()]
    return {"type": "http.response.start", "status": 200, "headers": encoded}


def _error_response(error: TunewayError) -> Response:
    headers = {"retry-after": str(error.retry_after)} if isinstance(error, TooManyRequests) else {}
    return JSONResponse(error.envelope(), error.status, headers)


async def _unknown_route(request: Request, _: Exception) -> Response:
    return _error_response(UnknownRoute(f"Invalid URL ({request.method} {request.url.path})"))


async def _wrong_method(request: Request, _: Exception) -> Response:
    return _error_response(MethodNotAllowed())

"""Calls read out of answers: engines that say what is written for them, behind the real app and the official client."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import httpx2
import openai
import pytest

from tests.contract.test_inference import MESSAGES, TOKEN
from tests.unit.tiny_renderer import write_base
from tuneway.dataset.template import Renderer
from tuneway.dataset.tools import read_tools
from tuneway.inference.engine import Piece, Sampling, TokenLogprob
from tuneway.inference.server import build_app

PARAMETERS = {
    "type": "object",
    "properties": {"q": {"type": "string", "maxLength": 5}, "n": {"enum": [1, 2]}},
    "required": ["q", "n"],
    "additionalProperties": False,
}
F = {"type": "function", "function": {"name": "f", "parameters": PARAMETERS, "strict": True}}
G = {"type": "function", "function": {"name": "g", "description": "It takes nothing."}}
NAMED = {"type": "function", "function": {"name": "f"}}

F_ARGUMENTS = r'{"q":"</tool_call>}{\"\\","n":1}'
F_CALL = f'<tool_call>\n{{"name": "f", "arguments": {F_ARGUMENTS}}}\n</tool_call>'
G_CALL = '<tool_call>\n{"name": "g", "arguments": {}}\n</tool_call>'


class Scripted:
    """Says `text`, `width` characters at a time, each with a log-probability, and remembers what was asked for."""

    fingerprint = "fp_scripted"

    def __init__(self, text: str, width: int = 1, finish_reason: Any = "stop") -> None:
        self._text, self._width, self._finish_reason = text, width, finish_reason
        self.prompts: list[Sequence[int]] = []
        self.samplings: list[Sampling] = []

    async def generate(
        self, prompt: Sequence[int], adapter: str | None, max_tokens: int, sampling: Sampling
    ) -> AsyncGenerator[Piece]:
        self.prompts.append(prompt)
        self.samplings.append(sampling)
        yield Piece("")
        parts = [self._text[at : at + self._width] for at in range(0, len(self._text), self._width)]
        for count, part in enumerate(parts, 1):
            yield Piece(part, (TokenLogprob(part, -1.0),), completion_tokens=count)
        yield Piece("", finish_reason=self._finish_reason, completion_tokens=len(parts) + 1)


@pytest.fixture(scope="module")
def renderer(tmp_path_factory: pytest.TempPathFactory) -> Renderer:
    return Renderer(write_base(tmp_path_factory.mktemp("base")))


class Asked:
    """One request to an app over a scripted engine, whole and streamed, by the official client."""

    def __init__(self, renderer: Renderer, engine: Scripted, max_in_flight: int = 9, **fields: Any) -> None:
        self._app = build_app(engine, renderer, (), context_length=4096, token=TOKEN, max_in_flight=max_in_flight)
        self._fields = {"model": "tiny", "messages": MESSAGES, "logprobs": True, **fields}

    def whole(self) -> dict[str, Any]:
        async def ask(client: openai.AsyncOpenAI) -> dict[str, Any]:
            answer = await client.chat.completions.create(**self._fields)
            return answer.to_dict()

        return self._run(ask)

    def accumulated(self) -> dict[str, Any]:
        async def ask(client: openai.AsyncOpenAI) -> dict[str, Any]:
            async with client.chat.completions.stream(**self._fields) as stream:
                return (await stream.get_final_completion()).to_dict()

        return self._run(ask)

    def _run(self, ask: Any) -> Any:
        async def main() -> Any:
            transport = httpx2.ASGITransport(app=self._app)
            async with httpx2.AsyncClient(transport=transport) as http:
                return await ask(
                    openai.AsyncOpenAI(base_url="http://e/v1", api_key=TOKEN, http_client=http, max_retries=0)
                )

        return asyncio.run(main())


def calls_of(message: dict[str, Any]) -> list[tuple[str, str]]:
    return [(one["function"]["name"], one["function"]["arguments"]) for one in message.get("tool_calls") or ()]


READ: dict[str, tuple[str, dict[str, Any], str | None, list[tuple[str, str]], str]] = {
    "a call": (F_CALL, {}, None, [("f", F_ARGUMENTS)], "tool_calls"),
    "text and calls": (
        f"Let me see.\n\n{F_CALL}\n{G_CALL}",
        {},
        "Let me see.\n",
        [("f", F_ARGUMENTS), ("g", "{}")],
        "tool_calls",
    ),
    "text only": ("a <tool_cal\n<tool", {}, "a <tool_cal\n<tool", [], "stop"),
    "nothing": ("", {}, "", [], "stop"),
    "a stop string before the call": (f"one, two{F_CALL}", {"stop": [", "]}, "one", [], "stop"),
    "a stop string inside the call": (F_CALL, {"stop": ["q", "}"]}, None, [("f", F_ARGUMENTS)], "tool_calls"),
    "a stop string that does not come": ("a, ", {"stop": [", b"]}, "a, ", [], "stop"),
    "a named function": (F_CALL, {"tool_choice": NAMED}, None, [("f", F_ARGUMENTS)], "stop"),
    "no calls wanted": (F_CALL, {"tool_choice": "none"}, F_CALL, [], "stop"),
}


@pytest.mark.parametrize("width", [1, 3, 1000])
@pytest.mark.parametrize(("text", "fields", "content", "calls", "reason"), READ.values(), ids=READ)
def test_calls_are_read(
    renderer: Renderer,
    text: str,
    fields: dict[str, Any],
    content: str | None,
    calls: list[tuple[str, str]],
    reason: str,
    width: int,
) -> None:
    asked = Asked(renderer, Scripted(text, width), tools=[F, G], **fields)
    whole, streamed = asked.whole()["choices"][0], asked.accumulated()["choices"][0]
    assert (whole["message"]["content"], calls_of(whole["message"]), whole["finish_reason"]) == (content, calls, reason)
    assert (streamed["message"].get("content") or "", streamed["finish_reason"]) == (content or "", reason)
    assert calls_of(streamed["message"]) == calls
    for choice in (whole, streamed):
        ids = [call["id"] for call in choice["message"].get("tool_calls") or ()]
        assert all(re.fullmatch("call_[0-9a-zA-Z]{24}", id_) for id_ in ids)
        assert len(set(ids)) == len(ids)
        tokens = [token["token"] for token in (choice.get("logprobs") or {}).get("content") or ()]
        assert (content or "").startswith("".join(tokens)), "a log-probability of what is no content"
    if width == 1:
        assert whole["logprobs"]["content"] == (streamed.get("logprobs") or {"content": []})["content"]
        assert len(whole["logprobs"]["content"]) == len(content or "")


def test_a_stream_names_the_call_and_then_sends_its_arguments(renderer: Renderer) -> None:
    async def deltas(client: openai.AsyncOpenAI) -> list[dict[str, Any]]:
        stream = await client.chat.completions.create(model="t", messages=MESSAGES, tools=[G], stream=True)
        return [chunk.choices[0].delta.to_dict() async for chunk in stream]

    opening, call, *arguments, end = Asked(renderer, Scripted(G_CALL))._run(deltas)
    assert opening == {"role": "assistant", "content": None, "refusal": None}
    id_ = call["tool_calls"][0].pop("id")
    assert id_.startswith("call_")
    assert call == {"tool_calls": [{"index": 0, "type": "function", "function": {"name": "g", "arguments": ""}}]}
    assert arguments == [{"tool_calls": [{"index": 0, "function": {"arguments": text}}]} for text in "{}"]
    assert end == {}


def test_the_old_names(renderer: Renderer) -> None:
    for choice in ("auto", {"name": "g"}):
        answer = Asked(renderer, Scripted(G_CALL), functions=[G["function"]], function_call=choice).whole()["choices"][
            0
        ]
        assert answer["message"]["function_call"] == {"name": "g", "arguments": "{}"}
        assert (answer["message"]["content"], answer["finish_reason"]) == (None, "function_call")
        assert "tool_calls" not in answer["message"]
    accumulated = Asked(renderer, Scripted(F_CALL), functions=[F["function"]]).accumulated()["choices"][0]
    assert accumulated["message"]["function_call"] == {"name": "f", "arguments": F_ARGUMENTS}


def test_an_answer_that_is_cut_off_in_a_call_shows_what_there_is(renderer: Renderer) -> None:
    asked = Asked(renderer, Scripted(F_CALL[:50], finish_reason="length"), tools=[F])
    choice = asked.whole()["choices"][0]
    assert choice["finish_reason"] == "length"
    ((name, arguments),) = calls_of(choice["message"])
    assert name == "f"
    assert F_ARGUMENTS.startswith(arguments)


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        (F_CALL[:50], {"tools": [F]}),
        ("no call", {"tools": [F], "tool_choice": "required"}),
        ('{"a": ', {"response_format": {"type": "json_object"}}),
    ],
    ids=["in a call", "no call", "no JSON"],
)
def test_an_engine_that_loses_the_form_is_an_error(renderer: Renderer, text: str, fields: dict[str, Any]) -> None:
    with pytest.raises(openai.InternalServerError, match="The engine lost the form"):
        Asked(renderer, Scripted(text), **fields).whole()


def test_stop_strings_are_the_engine_s_where_no_call_is_possible(renderer: Renderer) -> None:
    engine = Scripted("{}")
    Asked(renderer, engine, stop="a", response_format={"type": "json_object"}).whole()
    Asked(renderer, engine, stop="a", tools=[F]).whole()
    assert [sampling.stop for sampling in engine.samplings] == [("a",), ()]


def test_what_is_served_is_what_was_trained(renderer: Renderer) -> None:
    """A row of a training file, answer by answer: the prompt of the request, then exactly what the model must write."""
    row: dict[str, Any] = {
        "tools": [F, G],
        "messages": [
            {"role": "system", "content": "Be brief."},
            *MESSAGES,
            {
                "role": "assistant",
                "content": "Let me see.",
                "tool_calls": [
                    {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"q" : "ü", "n": 1.0}'}},
                    {"id": "2", "type": "function", "function": {"name": "g", "arguments": "{}"}},
                ],
            },
            {"role": "tool", "tool_call_id": "2", "content": "two"},
            {"role": "tool", "tool_call_id": "1", "content": [{"type": "text", "text": "one"}]},
            {"role": "assistant", "content": "Done."},
        ],
    }
    example = list(renderer.example(row["messages"], read_tools(row)).tokens)
    said = [
        'Let me see.\n<tool_call>\n{"name": "f", "arguments": {"q":"ü","n":1.0}}\n</tool_call>\n' + G_CALL,
        "Done.",
    ]
    for text, at in zip(said, (2, 5), strict=True):
        engine = Scripted(text)
        answer = Asked(renderer, engine, messages=row["messages"][:at], tools=row["tools"]).whole()["choices"][0][
            "message"
        ]
        sent = row["messages"][at]
        assert answer["content"] == sent["content"]
        assert [(name, json.loads(arguments)) for name, arguments in calls_of(answer)] == [
            (name, json.loads(arguments)) for name, arguments in calls_of(sent)
        ]
        prompt = list(engine.prompts[0])
        assert example[: len(prompt)] == prompt
        assert renderer.decode(example[len(prompt) :]).startswith(text + "<|im_end|>")
    text = renderer.decode(example)
    assert text.startswith('<|im_start|>system\nBe brief.\n\nYou can call these functions:\n<tools>\n{"name":"f",')
    results = "<tool_response>\none\n</tool_response>\n<tool_response>\ntwo\n</tool_response>"
    assert f"<|im_start|>user\n{results}<|im_end|>" in text, "results stand in the order of their calls"


def test_an_engine_with_too_much_to_do_says_when_to_come_again(renderer: Renderer) -> None:
    with pytest.raises(openai.RateLimitError) as refused:
        Asked(renderer, Scripted("a"), max_in_flight=0).whole()
    assert refused.value.code == "rate_limit_exceeded"
    assert int(refused.value.response.headers["retry-after"]) >= 1

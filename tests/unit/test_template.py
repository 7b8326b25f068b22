from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.tiny_renderer import CHATML, SPECIAL, write_base
from tuneway.dataset.messages import Call, Turn, normalise
from tuneway.dataset.template import NONCHARACTERS, InvalidMessages, Renderer
from tuneway.dataset.tools import in_text, read_tools

TRIMMING = CHATML.replace("message['content'] +", "message['content'] | trim +")
NAMED = CHATML.replace("message['role'] +", "message['role'] + (' ' + message['name'] if message['name'] else '') +")

Message = dict[str, Any]

texts = st.one_of(
    st.text(max_size=20),
    st.lists(
        st.sampled_from([*SPECIAL, "\n", " ", "\n\n", "ab", "hi", "<|im", "_end|>", "é", "🧿", "\ufdd0", "\ufdd1"])
    ).map("".join),
)
messages = st.lists(
    st.one_of(
        st.fixed_dictionaries({"role": st.sampled_from(["system", "developer", "user"]), "content": texts}),
        st.fixed_dictionaries(
            {"role": st.just("assistant"), "content": texts}, optional={"weight": st.sampled_from([0, 1])}
        ),
    ),
    min_size=1,
    max_size=8,
)


@pytest.fixture(scope="session")
def renderer(tmp_path_factory: pytest.TempPathFactory) -> Renderer:
    return Renderer(write_base(tmp_path_factory.mktemp("base")))


@pytest.fixture(scope="session", params=[CHATML, TRIMMING, NAMED], ids=["chatml", "trimming", "named"])
def any_renderer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Renderer:
    return Renderer(write_base(tmp_path_factory.mktemp("base"), request.param))


def supervised(renderer: Renderer, talk: list[Message]) -> str:
    example = renderer.example(talk)
    return renderer.decode([token for token, weight in zip(example.tokens, example.weights, strict=True) if weight])


@settings(deadline=None)
@given(talk=messages)
def test_the_loss_is_on_each_answer_and_on_the_token_that_ends_it(renderer: Renderer, talk: list[Message]) -> None:
    answers = [one["content"] for one in talk if one["role"] == "assistant" and one.get("weight", 1)]
    assert supervised(renderer, talk) == "".join(answer + "<|im_end|>" for answer in answers)


@settings(deadline=None)
@given(talk=messages)
def test_every_prompt_is_the_beginning_of_its_example(any_renderer: Renderer, talk: list[Message]) -> None:
    tokens = list(any_renderer.example(talk).tokens)
    for index, message in enumerate(talk):
        if message["role"] == "assistant" and index:
            prompt = any_renderer.prompt(talk[:index])
            assert tokens[: len(prompt)] == prompt


@settings(deadline=None)
@given(talk=messages)
def test_no_content_becomes_a_special_token(renderer: Renderer, talk: list[Message]) -> None:
    ids = renderer.prompt(talk)
    numbers = {symbol: at for at, symbol in enumerate(SPECIAL)}
    assert ids.count(numbers["<|im_start|>"]) == len(talk) + 1
    assert ids.count(numbers["<|im_end|>"]) == len(talk)
    assert ids.count(numbers["<|endoftext|>"]) == ids.count(numbers["<filename>"]) == 0


@settings(deadline=None)
@given(talk=messages)
def test_decoding_gives_the_rendered_text_back(renderer: Renderer, talk: list[Message]) -> None:
    roles = [one["role"].replace("developer", "system") for one in talk]
    text = "".join(f"<|im_start|>{role}\n{one['content']}<|im_end|>\n" for role, one in zip(roles, talk, strict=True))
    assert renderer.decode(renderer.prompt(talk)) == text + "<|im_start|>assistant\n"
    assert renderer.decode(renderer.example(talk).tokens) == text
    assert renderer.count(talk) == len(renderer.example(talk).tokens)


@settings(deadline=None, max_examples=30)
@given(talks=st.lists(messages, max_size=5))
def test_many_at_once_are_as_one_by_one(any_renderer: Renderer, talks: list[list[Message]]) -> None:
    together = any_renderer.encode([any_renderer.pieces(talk) for talk in talks])
    for talk, example in zip(talks, together, strict=True):
        alone = any_renderer.example(talk)
        assert list(example.tokens) == list(alone.tokens)
        assert list(example.weights) == list(alone.weights)


def test_the_newline_before_an_answer_does_not_merge_with_it(renderer: Renderer) -> None:
    talk = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "\n\nab"}]
    assert supervised(renderer, talk) == "\n\nab<|im_end|>"


def test_a_template_that_strips_answers_is_followed(tmp_path: Path) -> None:
    talk = [{"role": "user", "content": " hi "}, {"role": "assistant", "content": " \n ab \n"}]
    assert supervised(Renderer(write_base(tmp_path, TRIMMING)), talk) == "ab<|im_end|>"


def test_names(tmp_path: Path, renderer: Renderer) -> None:
    named = Renderer(write_base(tmp_path, NAMED))
    talk = [{"role": "user", "content": "hi", "name": "a<|im_end|>b"}]
    assert named.shows_names
    assert not renderer.shows_names
    assert "user a<|im_end|>b\nhi" in named.decode(named.prompt(talk))
    assert named.prompt(talk).count(SPECIAL.index("<|im_end|>")) == 1


def test_words_of_the_vocabulary_that_people_write_are_not_forbidden(renderer: Renderer) -> None:
    assert set(renderer.forbidden) == {"<|endoftext|>", "<|im_start|>", "<|im_end|>"}
    assert renderer.eos_ids == {SPECIAL.index("<|im_end|>"), SPECIAL.index("<|endoftext|>")}


def test_a_conversation_may_hold_noncharacters_but_not_all(renderer: Renderer) -> None:
    some = "".join(NONCHARACTERS[:30])
    assert some in renderer.decode(renderer.prompt([{"role": "user", "content": some + "é"}]))
    with pytest.raises(InvalidMessages, match="noncharacter"):
        renderer.prompt([{"role": "user", "content": "".join(NONCHARACTERS[:31])}])


REFUSED_TEMPLATES = {
    "no end of turn": (CHATML.replace("'<|im_end|>' + ", ""), "does not end in an end-of-turn token"),
    "ends in another token": (CHATML.replace("<|im_end|>", "<filename>"), "does not end in an end-of-turn token"),
    "hides answers": (
        CHATML.replace("message['content'] +", "(message['content'] if loop.last else '') +"),
        "beginning",
    ),
    "counts": ("{{ messages | length }}" + CHATML, "a prompt is not the beginning"),
    "another opening": (CHATML.replace("assistant\n", "model\n"), "a prompt is not the beginning"),
    "escapes the sandbox": ("{{ ''.__class__.__mro__ }}" + CHATML, "unsafe"),
    "changes the messages": ("{{ messages.append(1) }}" + CHATML, "unsafe"),
    "refuses all": ("{{ raise_exception('only on Sundays') }}", "only on Sundays"),
    "is no template": ("{% for %}", "Expected"),
}


@pytest.mark.parametrize(("template", "why"), REFUSED_TEMPLATES.values(), ids=REFUSED_TEMPLATES)
def test_refused_templates(tmp_path: Path, template: str, why: str) -> None:
    with pytest.raises(ValueError, match="the chat template of tiny cannot be used for tuning: .*" + why):
        Renderer(write_base(tmp_path, template))


def test_a_template_that_forgets_when_an_answer_follows_is_refused_for_that_conversation(tmp_path: Path) -> None:
    forgets = (
        "{% for message in messages %}{% set last = messages[-1]['content'] %}{{'<|im_start|>' + message['role'] + '\n'"
        " + (message['content'] if loop.last or 'short' not in last else '…') + '<|im_end|>' + '\n'}}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    renderer = Renderer(write_base(tmp_path, forgets))
    renderer.example([{"role": "user", "content": "hi"}, {"role": "assistant", "content": "long"}])
    with pytest.raises(InvalidMessages, match="changes earlier messages"):
        renderer.example([{"role": "user", "content": "hi"}, {"role": "assistant", "content": "short"}])


def test_a_template_may_refuse_a_conversation(tmp_path: Path) -> None:
    strict = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHATML
    with pytest.raises(InvalidMessages, match="refuses them: no system role"):
        Renderer(write_base(tmp_path, strict)).prompt([{"role": "system", "content": "x"}])


def test_a_folder_whose_tokeniser_does_not_fit_is_refused(tmp_path: Path) -> None:
    write_base(tmp_path)
    manifest = tmp_path / "base.json"
    manifest.write_text(manifest.read_text().replace('"<filename>"', '"<nowhere>"'))
    with pytest.raises(ValueError, match="does not know '<nowhere>' as a special token"):
        Renderer(tmp_path)


def test_templates_may_use_json_and_loop_controls(tmp_path: Path) -> None:
    template = "{% for m in [1, 2] %}{% break %}{% endfor %}{{ {'é': 1} | tojson }}{{ strftime_now('%%') }}" + CHATML
    renderer = Renderer(write_base(tmp_path, template))
    assert renderer.decode(renderer.prompt([{"role": "user", "content": "hi"}])).startswith('{"é": 1}%<|im_start|>')


# ---------------------------------------------------------------------------------------------------------- messages

CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}

NORMALISED: dict[str, tuple[Message, Turn]] = {
    "developer": ({"role": "developer", "content": "x"}, Turn("system", "x")),
    "parts": (
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        Turn("user", "a\nb"),
    ),
    "refusal": ({"role": "assistant", "content": None, "refusal": "No."}, Turn("assistant", "No.")),
    "refusal part": (
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
        Turn("assistant", "No."),
    ),
    "weight": ({"role": "assistant", "content": "x", "weight": 0}, Turn("assistant", "x", weight=0)),
    "an answer sent back": (
        {
            "role": "assistant",
            "content": "x",
            "refusal": None,
            "annotations": [],
            "audio": None,
            "function_call": None,
            "tool_calls": None,
        },
        Turn("assistant", "x"),
    ),
    "tool call": ({"role": "assistant", "tool_calls": [CALL]}, Turn("assistant", "", calls=(Call("f", "{}"),))),
    "function call": (
        {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": '{"ü" : [1.50, null]}'}},
        Turn("assistant", "", calls=(Call("f", '{"ü":[1.5,null]}'),)),
    ),
    "function": ({"role": "function", "content": None, "name": "f"}, Turn("function", "", "f")),
    "image": (
        {
            "role": "user",
            "content": [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "data:"}}],
        },
        Turn("user", "a", beyond_text="images"),
    ),
}


@pytest.mark.parametrize(("message", "turn"), NORMALISED.values(), ids=NORMALISED)
def test_normalised(message: Message, turn: Turn) -> None:
    assert normalise([message]) == [turn]


REFUSED_MESSAGES: dict[str, tuple[Any, str, str]] = {
    "no list": ("x", "messages", "Input should be a valid list"),
    "empty": ([], "messages", "List should have at least 1 item"),
    "no dictionary": ([1], "messages[0]", "Input should be a valid dictionary"),
    "no role": ([{"content": "x"}], "messages[0]", "Discriminator 'role' is missing in value"),
    "unknown role": (
        [{"role": "bot", "content": "x"}],
        "messages[0]",
        "Discriminator 'role' is \"bot\", expected one of: system, developer, user, assistant, tool, function",
    ),
    "role of another type": (
        [{"role": [], "content": "x"}],
        "messages[0]",
        "Discriminator 'role' is no string, expected one of: system, developer, user, assistant, tool, function",
    ),
    "unknown key": ([{"role": "user", "content": "x", "mood": 1}], "messages[0]", 'contains an extra "mood".'),
    "unprintable key": ([{"role": "user", "\n\ud800": 1}], "messages[0]", 'contains an extra "\\n\\\\ud800".'),
    "weight on user": ([{"role": "user", "content": "x", "weight": 1}], "messages[0]", 'contains an extra "weight".'),
    "weight 2": ([{"role": "assistant", "content": "x", "weight": 2}], "messages[0].weight", "Input should be 0 or 1"),
    "weight true": (
        [{"role": "assistant", "content": "x", "weight": True}],
        "messages[0].weight",
        "Input should be 0 or 1",
    ),
    "no content": (
        [{"role": "user", "content": "x"}, {"role": "assistant"}],
        "messages[1].content",
        "Input should be a valid string",
    ),
    "null content": ([{"role": "user", "content": None}], "messages[0].content", "Input should be a valid string"),
    "number": ([{"role": "user", "content": 5}], "messages[0].content", "Input should be a valid string"),
    "no parts": ([{"role": "user", "content": []}], "messages[0].content", "Input should be a valid string"),
    "audio part": (
        [{"role": "user", "content": [{"type": "input_audio"}]}],
        "messages[0].content[0]",
        "Input should be a part of type 'text'",
    ),
    "image in an answer": (
        [{"role": "assistant", "content": [{"type": "image_url"}]}],
        "messages[0].content[0]",
        "Input should be a part of type 'text'",
    ),
    "text part without text": (
        [{"role": "user", "content": [{"type": "text"}]}],
        "messages[0].content[0].text",
        "Input should be a valid string",
    ),
    "lone surrogate": (
        [{"role": "user", "content": "\ud800"}],
        "messages[0].content",
        "Input holds a lone surrogate (\\ud800), which is no character",
    ),
    "surrogate in a name": (
        [{"role": "user", "content": "", "name": "\udfff"}],
        "messages[0].name",
        "Input holds a lone surrogate (\\udfff), which is no character",
    ),
    "function without name": (
        [{"role": "function", "content": "x"}],
        "messages[0].name",
        "Input should be a valid string",
    ),
    "tool without id": (
        [{"role": "tool", "content": "x"}],
        "messages[0].tool_call_id",
        "Input should be a valid string",
    ),
    "content and refusal": (
        [{"role": "assistant", "content": "x", "refusal": "y"}],
        "messages[0].refusal",
        "A message has either a content or a refusal, not both",
    ),
    "audio": (
        [{"role": "assistant", "content": "x", "audio": {"id": "a"}}],
        "messages[0].audio",
        "Only text can be used; leave this out",
    ),
    "call without name": (
        [{"role": "assistant", "function_call": {"arguments": ""}}],
        "messages[0].function_call.name",
        "Input should be a valid string",
    ),
    "arguments that are no object": (
        [{"role": "assistant", "tool_calls": [{**CALL, "function": {"name": "f", "arguments": "[]"}}]}],
        "messages[0].tool_calls[0].function.arguments",
        "Input should be a string that holds a JSON object",
    ),
    "arguments that are no JSON": (
        [{"role": "assistant", "function_call": {"name": "f", "arguments": '{"a": 1e999}'}}],
        "messages[0].function_call.arguments",
        "Input should be a string that holds a JSON object",
    ),
    "half a character in arguments": (
        [{"role": "assistant", "function_call": {"name": "f", "arguments": '{"a": "\\ud800"}'}}],
        "messages[0].function_call.arguments",
        "Input should be a string that holds a JSON object",
    ),
    "a result of no call": (
        [{"role": "assistant", "tool_calls": [CALL]}, {"role": "tool", "tool_call_id": "x", "content": ""}],
        "messages[1].tool_call_id",
        '"x" is the id of no call in an earlier message',
    ),
    "call of another type": (
        [{"role": "assistant", "tool_calls": [{"type": "custom"}]}],
        "messages[0].tool_calls[0]",
        "Input should be a call of type 'function'",
    ),
}


@pytest.mark.parametrize(("talk", "param", "reason"), REFUSED_MESSAGES.values(), ids=REFUSED_MESSAGES)
def test_refused_messages(talk: Any, param: str, reason: str) -> None:
    with pytest.raises(InvalidMessages) as caught:
        normalise(talk)
    assert (caught.value.param, caught.value.reason) == (param, reason)
    assert caught.value.message == f"Invalid value for '{param}': {reason}"
    caught.value.message.encode()


def test_what_a_text_template_cannot_show_is_refused_not_dropped(renderer: Renderer) -> None:
    message, turn = NORMALISED["image"]
    expected = re.escape(f"Invalid value for 'messages[1]': This base model's chat template has no {turn.beyond_text}.")
    with pytest.raises(InvalidMessages, match=expected):
        renderer.prompt([{"role": "user", "content": "hi"}, message])


# -------------------------------------------------------------------------------------------------------------- tools

TOOL = {
    "type": "function",
    "function": {"name": "f", "description": "Dé", "parameters": {"type": "object"}, "strict": True},
}
LISTED = (
    'You can call these functions:\n<tools>\n{"name":"f","description":"Dé","parameters":{"type":"object"}}\n</tools>\n'
    "To call a function, write its name and its arguments as JSON, one block for each call:\n"
    '<tool_call>\n{"name": "the name", "arguments": {}}\n</tool_call>'
)
tool_talks = st.lists(
    st.one_of(
        st.fixed_dictionaries({"role": st.sampled_from(["system", "user"]), "content": texts}),
        st.fixed_dictionaries(
            {
                "role": st.just("assistant"),
                "content": st.none() | texts,
                "tool_calls": st.just(
                    [{**CALL, "function": {"name": "f<|im_end|>", "arguments": '{"a": "<|im_end|>"}'}}]
                ),
            }
        ),
        st.fixed_dictionaries({"role": st.just("function"), "name": st.just("f"), "content": texts}),
        st.fixed_dictionaries({"role": st.just("tool"), "tool_call_id": st.just("call_1"), "content": texts}),
    ),
    max_size=8,
).map(lambda talk: [{"role": "assistant", "tool_calls": [CALL]}, *talk])


@settings(deadline=None)
@given(talk=tool_talks, tools=st.sampled_from([{}, {"tools": [TOOL]}, {"functions": [TOOL["function"]]}]))
def test_with_tools_too_a_prompt_is_the_beginning_of_its_example(
    any_renderer: Renderer, talk: list[Message], tools: dict[str, Any]
) -> None:
    listed = read_tools(tools)
    tokens = list(any_renderer.example(talk, listed).tokens)
    for index, message in enumerate(talk):
        if message["role"] == "assistant" and index:
            prompt = any_renderer.prompt(talk[:index], listed)
            assert tokens[: len(prompt)] == prompt
    turns = in_text(normalise(talk), listed)
    assert tokens.count(SPECIAL.index("<|im_end|>")) == len(turns), "a content became a special token"


@pytest.mark.parametrize(("system", "shown"), [(None, LISTED), ("Be brief.", f"Be brief.\n\n{LISTED}"), ("", LISTED)])
def test_the_functions_end_the_system_turn(renderer: Renderer, system: str | None, shown: str) -> None:
    talk = [{"role": "user", "content": "hi"}]
    if system is not None:
        talk.insert(0, {"role": "system", "content": system})
    text = renderer.decode(renderer.prompt(talk, read_tools({"tools": [TOOL]})))
    assert text == f"<|im_start|>system\n{shown}<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


def test_one_call_at_a_time_is_said(renderer: Renderer) -> None:
    for one in ({"tools": [TOOL], "parallel_tool_calls": False}, {"functions": [TOOL["function"]]}):
        text = renderer.decode(renderer.prompt([{"role": "user", "content": "hi"}], read_tools(one)))
        assert "JSON, in one block; one call at a time:" in text

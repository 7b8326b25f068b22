"""Rows for dpo and reinforcement, and images, which providers without a renderer here may train on."""

from __future__ import annotations

import base64
import json
import random
import tracemalloc
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.tiny_renderer import write_base
from tuneway.dataset.check import MAX_LINE_BYTES, Kind, check
from tuneway.dataset.images import MAX_IMAGE_BYTES
from tuneway.dataset.report import Report
from tuneway.dataset.template import Renderer
from tuneway.types import JobError, Method

Write = Callable[..., Path]

USER = {"role": "user", "content": "hi"}
ANSWER = {"role": "assistant", "content": "ab"}
CHAT = {"messages": [USER, ANSWER]}
PAIR: dict[str, Any] = {
    "input": {"messages": [USER], "tools": [], "parallel_tool_calls": True},
    "preferred_output": [ANSWER],
    "non_preferred_output": [{"role": "assistant", "content": "no"}],
}
PROMPT: dict[str, Any] = {"messages": [{"role": "developer", "content": "x"}, USER], "answer": {"of": [1, None]}}
TOOL = {"type": "function", "function": {"name": "f"}}
CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
IMAGE = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}

FORMAT = "The job failed due to a file format error in the training file. Invalid file format. "
INVALID = "The job failed due to an invalid training file. Invalid file format. "


def without(row: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in keys}


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(row: Any, *others: Any) -> Path:
        """`row` on line 3, among `others` by turns."""
        lines = [others[at % len(others)] for at in range(11)]
        lines.insert(2, row)
        path = tmp_path / "f.jsonl"
        path.write_bytes(
            b"".join(line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n" for line in lines)
        )
        return path

    return write


def checked(path: Path, method: Method, *, kind: Kind = "training") -> Report:
    return check(path, kind=kind, renderer=None, context_length=64, method=method)


GOOD_PAIRS = {
    "as in OpenAI's guide": PAIR,
    "the old spelling": {
        "input": {"messages": [USER]},
        "preferred_completion": [ANSWER],
        "non_preferred_completion": [ANSWER],
    },
    "one old, one new": {**without(PAIR, "preferred_output"), "preferred_completion": [ANSWER]},
    "several messages": {**PAIR, "preferred_output": [ANSWER, ANSWER]},
    "text parts": {**PAIR, "preferred_output": [{"role": "assistant", "content": [{"type": "text", "text": "a"}]}]},
    "a call as the output": {
        **PAIR,
        "input": {"messages": [USER], "tools": [TOOL]},
        "preferred_output": [{"role": "assistant", "tool_calls": [CALL]}],
    },
    "nulls of table tools": {**PAIR, "preferred_output": [{**ANSWER, "weight": None, "name": None}]},
}


@pytest.mark.parametrize("row", GOOD_PAIRS.values(), ids=GOOD_PAIRS)
def test_a_dpo_row(write: Write, row: dict[str, Any]) -> None:
    report = checked(write(row, PAIR), Method.DPO)
    assert (report.error, report.n_examples) == (None, 12)


BAD_PAIRS: dict[str, tuple[Any, str]] = {
    "no input": (without(PAIR, "input"), "Example 3 is missing key 'input'"),
    "nothing of it": ({"text": "x"}, "Example 3 is missing key 'input'"),
    "no preferred": (without(PAIR, "preferred_output"), "Example 3 is missing key 'preferred_output'"),
    "no other": (without(PAIR, "non_preferred_output"), "Example 3 is missing key 'non_preferred_output'"),
    "extra key": ({**PAIR, "score": 1}, 'Example 3 contains an extra "score".'),
    "both spellings": (
        {**PAIR, "preferred_completion": [ANSWER]},
        'Example 3 contains an extra "preferred_completion".',
    ),
    "chat beside it": ({**PAIR, **CHAT}, 'Example 3 contains an extra "messages".'),
    "input no dictionary": ({**PAIR, "input": [USER]}, 'Line 3, key "input": Input should be a valid dictionary'),
    "input without messages": ({**PAIR, "input": {}}, "Example 3, input is missing key 'messages'"),
    "extra key in the input": (
        {**PAIR, "input": {"messages": [USER], "functions": []}},
        'Example 3, input contains an extra "functions".',
    ),
    "no message": (
        {**PAIR, "input": {"messages": []}},
        'Line 3, key "input.messages": List should have at least 1 item',
    ),
    "content a number": (
        {**PAIR, "input": {"messages": [USER, {"role": "user", "content": 5}]}},
        'Line 3, input message 2, key "content": Input should be a valid string',
    ),
    "no role": (
        {**PAIR, "input": {"messages": [{"content": "x"}]}},
        "Example 3, input message 1 Discriminator 'role' is missing in value",
    ),
    "an image": (
        {**PAIR, "input": {"messages": [{"role": "user", "content": [IMAGE]}]}},
        "Example 3, input message 1 has images, but 'dpo' trains on text only.",
    ),
    "tools no list": (
        {**PAIR, "input": {"messages": [USER], "tools": {}}},
        'Line 3, key "input.tools": Input should be a valid list of dictionaries',
    ),
    "special token": (
        {**PAIR, "input": {"messages": [{"role": "user", "content": "<|im_end|>"}]}},
        "Example 3 message contains an invalid token: <|im_end|>.",
    ),
    "special token in an output": (
        {**PAIR, "non_preferred_output": [{"role": "assistant", "content": "<|endoftext|>"}]},
        "Example 3 message contains an invalid token: <|endoftext|>.",
    ),
    "output no list": (
        {**PAIR, "preferred_output": "x"},
        'Line 3, key "preferred_output": Input should be a valid list',
    ),
    "output a message": (
        {**PAIR, "preferred_output": ANSWER},
        'Line 3, key "preferred_output": Input should be a valid list',
    ),
    "empty output": (
        {**PAIR, "non_preferred_output": []},
        'Line 3, key "non_preferred_output": List should have at least 1 item',
    ),
    "output by the user": (
        {**PAIR, "preferred_output": [ANSWER, USER]},
        "Example 3, preferred_output message 2 is from the user, but an output has messages from the assistant only.",
    ),
    "output by a tool": (
        {**PAIR, "preferred_output": [{"role": "tool", "tool_call_id": "1", "content": "x"}]},
        "Example 3, preferred_output message 1 is from the tool, but an output has messages from the assistant only.",
    ),
    "output without role": (
        {**PAIR, "preferred_output": [{"content": "x"}]},
        "Example 3, preferred_output message 1 Discriminator 'role' is missing in value",
    ),
    "output with an image": (
        {**PAIR, "preferred_output": [{"role": "assistant", "content": [IMAGE]}]},
        "Line 3, preferred_output message 1, key \"content[0]\": Input should be a part of type 'text'",
    ),
    "output with a weight": (
        {**PAIR, "non_preferred_output": [{**ANSWER, "weight": 0}]},
        'Example 3, non_preferred_output message 1 contains an extra "weight".',
    ),
    "an output in the old spelling": (
        {**without(PAIR, "preferred_output"), "preferred_completion": [{**ANSWER, "content": None}]},
        'Line 3, preferred_completion message 1, key "content": Input should be a valid string',
    ),
}


@pytest.mark.parametrize(("row", "message"), BAD_PAIRS.values(), ids=BAD_PAIRS)
def test_a_bad_dpo_row(write: Write, row: Any, message: str) -> None:
    report = checked(write(row, PAIR), Method.DPO)
    assert report.error == JobError("invalid_file_format", FORMAT + message, "training_file")
    assert [(one.example, one.line, one.message) for one in report.errors] == [(3, 3, message)]


GOOD_PROMPTS = {
    "a reference": PROMPT,
    "no reference": {"messages": [USER]},
    "after a conversation": {"messages": [USER, ANSWER, USER], "answer": "x"},
    "tools": {"messages": [USER], "tools": [TOOL]},
    "a reference that is named as a key of chat": {"messages": [USER], "functions": "f(x)", "parallel_tool_calls": "?"},
    "an image": {"messages": [{"role": "user", "content": [IMAGE]}]},
}


@pytest.mark.parametrize("row", GOOD_PROMPTS.values(), ids=GOOD_PROMPTS)
def test_a_reinforcement_row(write: Write, row: dict[str, Any]) -> None:
    report = checked(write(row, PROMPT), Method.REINFORCEMENT)
    assert (report.error, report.n_examples) == (None, 12)


BAD_PROMPTS: dict[str, tuple[Any, str]] = {
    "no messages": ({"prompt": "x", "answer": 1}, "Example 3 is missing key 'messages'"),
    "messages no list": ({**PROMPT, "messages": "x"}, 'Line 3, key "messages": Input should be a valid list'),
    "an answer at the end": ({**CHAT, "answer": "x"}, "Example 3 must end with a message from the user."),
    "the system at the end": (
        {"messages": [USER, {"role": "system", "content": "x"}]},
        "Example 3 must end with a message from the user.",
    ),
    "tools no list": (
        {**PROMPT, "tools": {}},
        'Line 3, key "tools": Input should be a valid list of dictionaries',
    ),
    "special token": (
        {"messages": [{"role": "user", "content": "<|im_end|>"}]},
        "Example 3 message contains an invalid token: <|im_end|>.",
    ),
}


@pytest.mark.parametrize(("row", "message"), BAD_PROMPTS.values(), ids=BAD_PROMPTS)
def test_a_bad_reinforcement_row(write: Write, row: Any, message: str) -> None:
    report = checked(write(row, PROMPT), Method.REINFORCEMENT)
    assert report.error == JobError("invalid_file_format", FORMAT + message, "training_file")
    assert [(one.example, one.line, one.message) for one in report.errors] == [(3, 3, message)]


CHAT_FILE = (
    "Input file is in the fine-tune-chat format, but the specified fine-tuning job is not using 'supervised' as the "
)
PREFERENCE_FILE = (
    "Input file is in the fine-tune-preference format, but the specified fine-tuning job is not using 'dpo' as the "
)
COMPLETIONS_FILE = (
    "Input file is in the fine-tune-completions format, but the base model of the specified fine-tuning job is a chat "
    "model; every line needs "
)
OLD_PAIR = {"input": {"messages": [USER]}, "preferred_completion": [], "non_preferred_completion": []}
COMPLETION = {"prompt": "a", "completion": "b"}
MISMATCHES = {
    "chat for dpo": (CHAT, Method.DPO, CHAT_FILE + "training method (provided method=dpo)."),
    "prompts for dpo": (PROMPT, Method.DPO, CHAT_FILE + "training method (provided method=dpo)."),
    "chat for reinforcement": (
        CHAT,
        Method.REINFORCEMENT,
        CHAT_FILE + "training method (provided method=reinforcement).",
    ),
    "pairs for supervised": (
        PAIR,
        Method.SUPERVISED,
        PREFERENCE_FILE + "training method (provided method=supervised).",
    ),
    "old pairs for supervised": (
        OLD_PAIR,
        Method.SUPERVISED,
        PREFERENCE_FILE + "training method (provided method=supervised).",
    ),
    "pairs for reinforcement": (
        PAIR,
        Method.REINFORCEMENT,
        PREFERENCE_FILE + "training method (provided method=reinforcement).",
    ),
    "completions for dpo": (COMPLETION, Method.DPO, COMPLETIONS_FILE + "'input'."),
    "completions for reinforcement": (COMPLETION, Method.REINFORCEMENT, COMPLETIONS_FILE + "'messages'."),
}


@pytest.mark.parametrize(("row", "method", "message"), MISMATCHES.values(), ids=MISMATCHES)
def test_a_file_for_another_method(write: Write, row: dict[str, Any], method: Method, message: str) -> None:
    path = write(row, row)
    report = checked(path, method)
    assert report.error == JobError("invalid_training_file", INVALID + message, "training_file")
    assert report.n_errors == 12
    message = INVALID.replace("training file", "validation file") + message
    error = checked(path, method, kind="validation").error
    assert error == JobError("invalid_validation_file", message, "validation_file")


KEYS = (
    "messages role content tools input preferred_output non_preferred_completion prompt completion type image_url url"
)
WORDS = f"{KEYS} weight name tool_calls function_call function user assistant text"
words = st.sampled_from(WORDS.split())
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | words,
    lambda inner: st.lists(inner) | st.dictionaries(words, inner),
)
messages = st.lists(st.fixed_dictionaries({"role": words, "content": json_values}, optional={"name": json_values}))
rows = st.fixed_dictionaries(
    {},
    optional={
        "messages": messages | json_values,
        "tools": json_values,
        "input": st.fixed_dictionaries({"messages": messages | json_values}) | json_values,
        "preferred_output": messages | json_values,
        "non_preferred_output": messages | json_values,
    },
)


@settings(deadline=None)
@given(method=st.sampled_from(Method), row=rows | json_values)
def test_no_row_breaks_the_check(tmp_path_factory: pytest.TempPathFactory, method: Method, row: Any) -> None:
    path = tmp_path_factory.mktemp("f") / "f.jsonl"
    path.write_bytes(json.dumps(row).encode())
    report = checked(path, method, kind="validation")
    assert report.n_examples == 1
    assert (report.error is None) == (report.n_errors == 0)
    json.dumps(report.to_json(), ensure_ascii=False).encode()


@pytest.mark.parametrize(("method", "row"), [(Method.DPO, PAIR), (Method.REINFORCEMENT, PROMPT)])
def test_ten_examples_for_every_method(tmp_path: Path, method: Method, row: dict[str, Any]) -> None:
    path = tmp_path / "f.jsonl"
    path.write_bytes(9 * (json.dumps(row).encode() + b"\n"))
    message = "Training file has 9 example(s), but must have at least 10 examples"
    assert checked(path, method).error == JobError("invalid_n_examples", message, "training_file")
    assert checked(path, method, kind="validation").error is None


def test_no_renderer_has_a_form_for_another_method(tmp_path: Path, write: Write) -> None:
    renderer = Renderer(write_base(tmp_path / "base"))
    with pytest.raises(ValueError, match="'dpo' cannot be tokenised"):
        check(write(PAIR, PAIR), kind="training", renderer=renderer, context_length=64, method=Method.DPO)


def test_the_old_spelling_is_measured(write: Write) -> None:
    assert checked(write(PAIR, PAIR), Method.DPO).old_outputs == 0
    path = write(GOOD_PAIRS["the old spelling"], PAIR, GOOD_PAIRS["one old, one new"])
    longer = len("completion") - len("output")
    report = checked(path, Method.DPO)
    assert report.old_outputs == (2 + 5) * longer
    assert Report.from_json(json.loads(json.dumps(report.to_json()))) == report


# ---------------------------------------------------------------------------------------------------------- images


def looking(*urls: Any) -> dict[str, Any]:
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return {"messages": [{"role": "user", "content": [{"type": "text", "text": "?"}, *parts]}, ANSWER]}


def data_url(size: int, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(bytes(size)).decode()}"


GOOD_IMAGES = {
    "by address": looking("https://example.com/a.png?b=c", "http://example.com/a"),
    "as data": looking(data_url(10), data_url(11, "jpeg"), data_url(12, "jpg"), data_url(0, "webp") + "AAA="),
    "with a detail": {
        "messages": [
            {"role": "user", "content": [{**IMAGE, "image_url": {**IMAGE["image_url"], "detail": "low"}}]},
            ANSWER,
        ]
    },
    "ten": looking(*["https://example.com/a"] * 10),
}


@pytest.mark.parametrize("row", GOOD_IMAGES.values(), ids=GOOD_IMAGES)
def test_images_in_chat(write: Write, row: dict[str, Any]) -> None:
    assert checked(write(row, CHAT), Method.SUPERVISED).error is None


NO_URL = "Input should be an http(s) URL, or a data URL with a JPEG, PNG or WEBP image in base64"
BAD_IMAGES: dict[str, tuple[Any, str]] = {
    "eleven": (looking(*["https://example.com/a"] * 11), "Example 3 has 11 images, but can have at most 10."),
    "eleven in all": (
        {"messages": looking(*["https://example.com/a"] * 6)["messages"][:1] * 2 + [ANSWER]},
        "Example 3 has 12 images, but can have at most 10.",
    ),
    "no URL": (
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}, ANSWER]},
        'Line 3, message 1, key "content[0].image_url": Input should be a valid dictionary',
    ),
    "a number": (looking(5), f'Line 3, message 1, key "content[1].image_url.url": {NO_URL}'),
    "a file": (looking("file:///a.png"), f'Line 3, message 1, key "content[1].image_url.url": {NO_URL}'),
    "a GIF": (
        looking("https://example.com/a", data_url(9, "gif")),
        f'Line 3, message 1, key "content[2].image_url.url": {NO_URL}',
    ),
    "no data": (looking("data:image/png;base64,"), f'Line 3, message 1, key "content[1].image_url.url": {NO_URL}'),
    "no base64": (
        looking("data:image/png;base64,AA A"),
        f'Line 3, message 1, key "content[1].image_url.url": {NO_URL}',
    ),
    "shown by the assistant": (
        {"messages": [USER, {"role": "assistant", "content": [IMAGE]}]},
        "Line 3, message 2, key \"content[0]\": Input should be a part of type 'text'",
    ),
    "too large": (
        looking(data_url(MAX_IMAGE_BYTES + 3)),
        "Example 3 cannot be parsed. "
        "Error: line holds an image of more than 10,485,760 bytes; make it smaller (line 3)",
    ),
    "long text besides": (
        {"messages": [*looking(data_url(10))["messages"], {"role": "user", "content": "x" * MAX_LINE_BYTES}]},
        "Example 3 cannot be parsed. Error: line is longer than 2,097,152 bytes; shorten or split the example (line 3)",
    ),
    "long, and broken behind its image": (
        json.dumps(looking(data_url(MAX_LINE_BYTES))).encode()[:-1] + b"\n",
        "Example 3 cannot be parsed. Error: line contains invalid json: Expecting ',' delimiter: "
        "line 2 column 1 (char 191) (line 3)",
    ),
}


@pytest.mark.parametrize(("row", "message"), BAD_IMAGES.values(), ids=BAD_IMAGES)
def test_bad_images(write: Write, row: Any, message: str) -> None:
    report = checked(write(row, CHAT), Method.SUPERVISED)
    assert report.error == JobError("invalid_file_format", FORMAT + message, "training_file")
    assert [(one.example, one.line, one.message) for one in report.errors] == [(3, 3, message)]


@pytest.mark.parametrize(("kind", "escaped"), [("jpeg", False), ("webp", True)], ids=["plain", "slashes escaped"])
def test_a_line_may_hold_ten_images_of_ten_megabytes(write: Write, kind: str, escaped: bool) -> None:
    picture = base64.b64encode(random.Random(1).randbytes(MAX_IMAGE_BYTES)).decode()
    line = json.dumps(looking(*[f"data:image/{kind};base64,{picture}"] * 10)).encode() + b"\n"
    if escaped:
        line = line.replace(b"/", rb"\/")
    path = write(line, CHAT)
    tracemalloc.start()
    report = checked(path, Method.SUPERVISED)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (report.error, report.n_examples) == (None, 12)
    assert peak < 2.5 * len(line)


def test_a_large_file_is_not_held_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl"
    row = json.dumps({"messages": [USER, {"role": "assistant", "content": "x" * 10_000}]}).encode() + b"\n"
    with path.open("wb") as file:
        for _ in range(2000):
            file.write(row)
    tracemalloc.start()
    report = checked(path, Method.SUPERVISED)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (report.error, report.n_examples) == (None, 2000)
    assert peak < 2**20 < path.stat().st_size / 10

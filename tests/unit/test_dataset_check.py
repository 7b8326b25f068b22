from __future__ import annotations

import json
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.tiny_renderer import write_base
from tuneway.dataset.check import MAX_LINE_BYTES, Kind, check
from tuneway.dataset.report import Report
from tuneway.dataset.template import Renderer
from tuneway.dataset.tools import read_tools
from tuneway.rundir import read_tokens
from tuneway.types import JobError

USER = {"role": "user", "content": "hi"}
GOOD: dict[str, Any] = {"messages": [USER, {"role": "assistant", "content": "ab"}]}
CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def renderer(base: Path) -> Renderer:
    return Renderer(base)


def example(**changes: Any) -> bytes:
    return json.dumps({**GOOD, **changes}).encode()


def answer(**changes: Any) -> bytes:
    return example(messages=[USER, {"role": "assistant", "content": "ab", **changes}])


def written(path: Path, lines: Sequence[bytes], end: bytes = b"\n") -> Path:
    path.write_bytes(end.join(lines) + end)
    return path


def checked(path: Path, renderer: Renderer | None, *, kind: Kind = "training", context_length: int = 64) -> Report:
    return check(path, kind=kind, renderer=renderer, context_length=context_length, tokens=path.with_suffix(".tokens"))


FORMAT = "The job failed due to a file format error in the training file. Invalid file format. "
INVALID = "The job failed due to an invalid training file. Invalid file format. "

# The third line of a file, and what is said of it, with a renderer and without.
BAD_LINES: dict[str, tuple[bytes, str]] = {
    "not JSON": (
        b'{"messages": [{"role": "user" "content": "x"}]}',
        "Example 3 cannot be parsed. Error: line contains invalid json: "
        "Expecting ',' delimiter: line 1 column 31 (char 30) (line 3)",
    ),
    "two values": (
        b"{} {}",
        "Example 3 cannot be parsed. Error: line contains invalid json: Extra data: line 1 column 4 (char 3) (line 3)",
    ),
    "not UTF-8": (
        b'{"messages": "\xff"}',
        "Example 3 cannot be parsed. Error: line is not UTF-8: invalid start byte at byte 14 (line 3)",
    ),
    "a second byte order mark": (
        b"\xef\xbb\xbf" + example(),
        "Example 3 cannot be parsed. Error: line contains invalid json: "
        "Unexpected UTF-8 BOM (decode using utf-8-sig): line 1 column 1 (char 0) (line 3)",
    ),
    "duplicate key": (
        b'{"messages": [{"role": "user", "content": "x", "role": "assistant"}]}',
        'Example 3 cannot be parsed. Error: line contains invalid json: Duplicate key "role" (line 3)',
    ),
    "NaN": (
        b'{"messages": NaN}',
        "Example 3 cannot be parsed. Error: line contains invalid json: NaN is no JSON value (line 3)",
    ),
    "infinity": (
        b'{"messages": [{"role": "assistant", "content": "x", "weight": -Infinity}]}',
        "Example 3 cannot be parsed. Error: line contains invalid json: -Infinity is no JSON value (line 3)",
    ),
    "an endless number": (
        b'{"messages": [{"role": "assistant", "content": "x", "weight": 1e999}]}',
        'Line 3, message 1, key "weight": Input should be 0 or 1',
    ),
    "nested": (b'{"messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "Example 3 is nested too deeply (line 3)"),
    "too long": (
        example(messages=[USER, {"role": "assistant", "content": "x" * MAX_LINE_BYTES}]),
        "Example 3 cannot be parsed. Error: line is longer than 2,097,152 bytes; shorten or split the example (line 3)",
    ),
    "a list": (
        b'["x"]',
        "Expected file to have JSONL format, where every line is a JSON dictionary. "
        'Line 3 is not a dictionary (HINT: line starts with: "[\\"x\\"").',
    ),
    "no messages": (b'{"text": "x"}', "Example 3 is missing key 'messages'"),
    "extra key": (example(weight=1), 'Example 3 contains an extra "weight".'),
    "messages no list": (example(messages="x"), 'Line 3, key "messages": Input should be a valid list'),
    "no message": (example(messages=[]), 'Line 3, key "messages": List should have at least 1 item'),
    "no role": (
        example(messages=[USER, {"content": "x"}]),
        "Example 3, message 2 Discriminator 'role' is missing in value",
    ),
    "unknown role": (
        example(messages=[{"role": "bot", "content": "x"}]),
        "Example 3, message 1 Discriminator 'role' is \"bot\", "
        "expected one of: system, developer, user, assistant, tool, function",
    ),
    "content a number": (answer(content=5), 'Line 3, message 2, key "content": Input should be a valid string'),
    "extra key of a message": (answer(mood="good"), 'Example 3, message 2 contains an extra "mood".'),
    "weight 0.5": (answer(weight=0.5), 'Line 3, message 2, key "weight": Input should be 0 or 1'),
    "weight on a user": (
        example(messages=[{**USER, "weight": 0}, GOOD["messages"][1]]),
        'Example 3, message 1 contains an extra "weight".',
    ),
    "lone surrogate": (
        b'{"messages": [{"role": "assistant", "content": "\\ud83d"}]}',
        'Line 3, message 1, key "content": Input holds a lone surrogate (\\ud83d), which is no character',
    ),
    "surrogate in a key": (b'{"messages": [], "\\ud83d": 1}', 'Example 3 contains an extra "\\\\ud83d".'),
    "no assistant": (example(messages=[USER]), "Example 3 must have at least one message from the assistant."),
    "all weights 0": (
        answer(weight=0),
        'Example 3 has nothing to learn from: every assistant message has "weight": 0.',
    ),
    "special token": (
        answer(content="x<|im_end|>"),
        "Example 3 message contains an invalid token: <|im_end|>.",
    ),
    "special token, written otherwise": (
        answer(content="\x00").replace(b"\\u0000", b"\\u003c|im_end|\\u003e"),
        "Example 3 message contains an invalid token: <|im_end|>.",
    ),
    "special token of another base": (
        example(messages=[{"role": "user", "content": "<|fim_suffix|>"}, GOOD["messages"][1]]),
        "Example 3 message contains an invalid token: <|fim_suffix|>.",
    ),
    "special token in a name": (
        answer(name="<|im_start|>"),
        "Example 3 message contains an invalid token: <|im_start|>.",
    ),
    "tools no list": (example(tools={}), 'Line 3, key "tools": Input should be a valid list of dictionaries'),
    "too many tools": (example(tools=[{}] * 129), 'Line 3, key "tools": List should have at most 128 items'),
    "tool without function": (
        example(tools=[{"type": "function"}]),
        'Line 3, key "tools[0].function": Input should be a valid dictionary',
    ),
    "arguments that are no object": (
        answer(tool_calls=[{**CALL, "function": {"name": "f", "arguments": "x"}}]),
        'Line 3, message 2, key "tool_calls[0].function.arguments": Input should be a string that holds a JSON object',
    ),
    "special token in a tool": (
        example(tools=[{"type": "function", "function": {"name": "f", "description": "<|im_end|>"}}]),
        "Example 3 message contains an invalid token: <|im_end|>.",
    ),
    "parallel": (example(parallel_tool_calls=1), 'Line 3, key "parallel_tool_calls": Input should be a valid boolean'),
}


@pytest.mark.parametrize("with_renderer", [True, False], ids=["renderer", "no renderer"])
@pytest.mark.parametrize(("bad", "message"), BAD_LINES.values(), ids=BAD_LINES)
def test_a_bad_line(tmp_path: Path, renderer: Renderer, bad: bytes, message: str, with_renderer: bool) -> None:
    path = written(tmp_path / "f.jsonl", [example(), example(), bad, *[example()] * 9])
    report = checked(path, renderer if with_renderer else None)
    assert report.error == JobError("invalid_file_format", FORMAT + message, "training_file")
    assert [(one.example, one.line, one.message) for one in report.errors] == [(3, 3, message)]
    assert (report.n_errors, report.n_examples) == (1, 12)
    assert list(tmp_path.iterdir()) == [path], "a file of tokens stands beside a bad file"
    json.dumps(report.to_json(), ensure_ascii=False).encode()


MISMATCHES: dict[str, tuple[bytes, str]] = {
    "dpo": (
        json.dumps({"input": {"messages": [USER]}, "preferred_output": [], "non_preferred_output": []}).encode(),
        "Input file is in the fine-tune-preference format, but the specified fine-tuning job is not using 'dpo' as the "
        "training method (provided method=supervised).",
    ),
    "completions": (
        b'{"prompt": "a", "completion": "b"}',
        "Input file is in the fine-tune-completions format, but the base model of the specified fine-tuning job is a "
        "chat model; every line needs 'messages'.",
    ),
}


@pytest.mark.parametrize(("line", "message"), MISMATCHES.values(), ids=MISMATCHES)
def test_a_file_for_another_method(tmp_path: Path, renderer: Renderer, line: bytes, message: str) -> None:
    report = checked(written(tmp_path / "f.jsonl", [line] * 10), renderer)
    assert report.error == JobError("invalid_training_file", INVALID + message, "training_file")
    assert report.n_errors == 10


def test_images_are_good_where_the_provider_renders_by_itself(tmp_path: Path, renderer: Renderer) -> None:
    image = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}
    line = example(messages=[{"role": "user", "content": [image]}, GOOD["messages"][1]])
    path = written(tmp_path / "f.jsonl", [example(), example(), line, *[example()] * 9])
    assert checked(path, None).error is None
    message = FORMAT + "Example 3, message 1 This base model's chat template has no images."
    assert checked(path, renderer).error == JobError("invalid_file_format", message, "training_file")


TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]


def test_tools_are_part_of_an_example(tmp_path: Path, renderer: Renderer) -> None:
    called = [
        USER,
        {"role": "assistant", "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "call_1", "content": "x"},
    ]
    rows = [
        {"messages": [*called, GOOD["messages"][1]], "tools": TOOLS, "parallel_tool_calls": parallel}
        for parallel in (True, False)
    ]
    rows.append(
        {"messages": [USER, {"role": "assistant", "function_call": CALL["function"]}], "functions": [{"name": "f"}]}
    )
    path = written(tmp_path / "f.jsonl", [*[example()] * 9, *(json.dumps(row).encode() for row in rows)])
    report = checked(path, renderer, context_length=4096)
    assert (report.error, report.n_warnings) == (None, 0)
    found = [list(one.tokens) for one in read_tokens(path.with_suffix(".tokens"))[9:]]
    assert found == [list(renderer.example(row["messages"], read_tools(row)).tokens) for row in rows]
    assert found[0] != found[1]


COUNTS: dict[str, tuple[Kind, int, JobError | None]] = {
    "7 to train": (
        "training",
        7,
        JobError(
            "invalid_n_examples", "Training file has 7 example(s), but must have at least 10 examples", "training_file"
        ),
    ),
    "none to train": (
        "training",
        0,
        JobError(
            "invalid_n_examples", "Training file has 0 example(s), but must have at least 10 examples", "training_file"
        ),
    ),
    "10 to train": ("training", 10, None),
    "none to validate": (
        "validation",
        0,
        JobError(
            "invalid_validation_file",
            "Validation file has 0 example(s), but must have at least 1 example",
            "validation_file",
        ),
    ),
    "1 to validate": ("validation", 1, None),
}


@pytest.mark.parametrize(("kind", "count", "error"), COUNTS.values(), ids=COUNTS)
def test_counts(tmp_path: Path, renderer: Renderer, kind: Kind, count: int, error: JobError | None) -> None:
    report = checked(written(tmp_path / "f.jsonl", [example()] * count), renderer, kind=kind)
    assert (report.error, report.n_examples, report.n_errors) == (error, count, 0)


def test_a_bad_validation_file(tmp_path: Path, renderer: Renderer) -> None:
    message = FORMAT.replace("training", "validation") + "Example 1 is missing key 'messages'"
    report = checked(written(tmp_path / "f.jsonl", [b"{}"]), renderer, kind="validation")
    assert report.error == JobError("invalid_validation_file", message, "validation_file")


@pytest.mark.parametrize("end", [b"\n", b"\r\n"], ids=["LF", "CRLF"])
def test_blank_lines_and_a_byte_order_mark_are_tolerated(tmp_path: Path, renderer: Renderer, end: bytes) -> None:
    lines = [b"\xef\xbb\xbf" + example(), b"", b" \t", *[example()] * 9, b"", b"{}", b"", b""]
    report = checked(written(tmp_path / "f.jsonl", lines, end), renderer)
    assert report.n_examples == 11
    assert [(one.example, one.line) for one in report.errors] == [(11, 14)]


def test_no_newline_at_the_end(tmp_path: Path, renderer: Renderer) -> None:
    path = tmp_path / "f.jsonl"
    path.write_bytes(b"\n".join([example()] * 10))
    assert checked(path, renderer) == checked(written(path, [example()] * 10), renderer)


def test_the_tokens_are_those_of_the_renderer(tmp_path: Path, renderer: Renderer) -> None:
    talks = [
        [USER, {"role": "assistant", "content": "ab " * at, "weight": at % 2}, *GOOD["messages"]] for at in range(12)
    ]
    path = written(tmp_path / "f.jsonl", [example(messages=talk) for talk in talks])
    report = checked(path, renderer, context_length=1000)
    expected = [renderer.example(talk) for talk in talks]
    found = read_tokens(path.with_suffix(".tokens"))
    assert [(list(one.tokens), list(one.weights)) for one in found] == [
        (list(one.tokens), list(one.weights)) for one in expected
    ]
    assert report.tokens == sum(len(one.tokens) for one in expected)
    assert report.supervised_tokens == sum(sum(one.weights) for one in expected)
    assert report.longest == max(len(one.tokens) for one in expected)


def test_an_example_beyond_the_context_is_cut_with_a_warning(tmp_path: Path, renderer: Renderer) -> None:
    long = {"messages": [USER, {"role": "assistant", "content": "x" * 100}]}
    length = renderer.count(long["messages"])
    path = written(tmp_path / "f.jsonl", [*[example()] * 9, json.dumps(long).encode()])
    report = checked(path, renderer, context_length=64)
    assert report.error is None
    assert (report.n_warnings, report.longest) == (1, 64)
    assert (report.warnings[0].example, report.warnings[0].message) == (
        10,
        f"Example 10 has {length} tokens; the last {length - 64} were cut to fit the context length of 64.",
    )
    whole = renderer.example(long["messages"])
    cut = read_tokens(path.with_suffix(".tokens"))[9]
    assert (list(cut.tokens), list(cut.weights)) == (list(whole.tokens)[:64], list(whole.weights)[:64])


def test_an_example_whose_answer_is_cut_off_is_an_error(tmp_path: Path, renderer: Renderer) -> None:
    long = {"messages": [{"role": "user", "content": "x" * 1500}, GOOD["messages"][1]]}
    path = written(tmp_path / "f.jsonl", [json.dumps(long).encode(), *[example()] * 9, b"{}"])
    report = checked(path, renderer)
    expected = (
        f"Example 1 has {renderer.count(long['messages']):,} tokens, and no assistant token to learn from lies within "
        "the context length of 64."
    )
    assert report.error is not None
    assert report.error.message == FORMAT + expected, "the first error of the file, though found last"
    assert [one.example for one in report.errors] == [1, 11]


def test_the_first_20_errors_and_warnings_are_listed_and_all_are_counted(tmp_path: Path, renderer: Renderer) -> None:
    long = answer(content="x" * 100)
    path = written(tmp_path / "f.jsonl", [line for _ in range(50) for line in (b"{}", long)])
    report = checked(path, renderer)
    assert (report.n_examples, report.n_errors, report.n_warnings) == (100, 50, 50)
    assert [one.example for one in report.errors] == list(range(1, 40, 2))
    assert [one.example for one in report.warnings] == list(range(2, 41, 2))


def test_names_that_the_template_leaves_out_are_told_once(tmp_path: Path, renderer: Renderer) -> None:
    report = checked(written(tmp_path / "f.jsonl", [example(), *[answer(name="Ann")] * 9]), renderer)
    assert report.error is None
    assert [one.message for one in report.warnings] == [
        "Example 2 names a participant; this base model's chat template shows no names."
    ]


def test_without_a_renderer_nothing_is_counted_and_nothing_written(tmp_path: Path) -> None:
    path = written(tmp_path / "f.jsonl", [answer(content="x" * 1000)] * 10)
    assert checked(path, None) == Report(n_examples=10)
    assert list(tmp_path.iterdir()) == [path]


def test_a_giant_line_takes_no_memory(tmp_path: Path, renderer: Renderer) -> None:
    path = tmp_path / "f.jsonl"
    with path.open("wb") as file:
        for _ in range(64):
            file.write(b"x" * 2**20)
    tracemalloc.start()
    report = checked(path, renderer)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (report.n_examples, report.n_errors) == (1, 1)
    assert peak < 4 * MAX_LINE_BYTES


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.text() | st.sampled_from(["role", "content", "messages"]), inner)
    ),
)


@settings(deadline=None)
@given(line=st.binary(max_size=60) | json_values.map(lambda value: json.dumps(value).encode()))
def test_no_line_breaks_the_check_or_is_left_out(
    tmp_path_factory: pytest.TempPathFactory, renderer: Renderer, line: bytes
) -> None:
    line = line.replace(b"\n", b" ")
    path = written(tmp_path_factory.mktemp("f") / "f.jsonl", [*[example()] * 10, b"x" + line])
    report = checked(path, renderer)
    assert (report.n_examples, report.n_errors) == (11, 1)
    path = written(path, [*[example()] * 10, line])
    report = checked(path, renderer)
    assert report.n_examples == 10 + bool(line.strip(b" \t\r"))
    assert Report.from_json(json.loads(json.dumps(report.to_json()))) == report


# ------------------------------------------------------------------------------------------- python -m tuneway.dataset


def run_child(request: dict[str, Any], *, limit: str = "") -> subprocess.CompletedProcess[str]:
    """The check as the gateway runs it: its standard input stays open until it has ended."""
    command = ["/bin/sh", "-c", f'{limit} exec "$0" -m tuneway.dataset', sys.executable]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdin.write(json.dumps(request) + "\n")
        child.stdin.flush()
        out, err = child.stdout.read(), child.stderr.read()
        return subprocess.CompletedProcess(command, child.wait(), out, err)


def test_the_child_ends_with_its_gateway(tmp_path: Path) -> None:
    fifo = tmp_path / "never-written"
    os.mkfifo(fifo)
    request = {"files": [{"path": str(fifo), "kind": "training", "tokens": None}], "renderer": None}
    command = [sys.executable, "-m", "tuneway.dataset"]
    done = subprocess.run(command, input=json.dumps({**request, "context_length": 64}) + "\n", text=True, timeout=60)
    assert done.returncode == 1


def test_the_child_prints_a_report_per_file(tmp_path: Path, base: Path, renderer: Renderer) -> None:
    good, bad = written(tmp_path / "good", [example()] * 10), written(tmp_path / "bad", [b"{}"])
    files = [
        {"path": str(good), "kind": "training", "tokens": str(tmp_path / "out.tokens")},
        {"path": str(bad), "kind": "validation", "tokens": None},
    ]
    done = run_child({"files": files, "renderer": str(base), "context_length": 64})
    assert (done.returncode, done.stderr) == (0, "")
    reports = [Report.from_json(json.loads(line)) for line in done.stdout.splitlines()]
    assert reports == [checked(good, renderer), checked(bad, renderer, kind="validation")]
    assert len(read_tokens(tmp_path / "out.tokens")) == 10


def test_the_child_says_when_the_disk_is_full(tmp_path: Path, base: Path) -> None:
    path = written(tmp_path / "f.jsonl", [example()] * 1000)
    file = {"path": str(path), "kind": "training", "tokens": str(tmp_path / "out.tokens")}
    done = run_child({"files": [file], "renderer": str(base), "context_length": 64}, limit="ulimit -f 8;")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("tuneway.dataset: ")
    assert "File too large" in done.stderr
    assert list(tmp_path.iterdir()) == [path]


def test_the_child_says_when_there_is_no_base(tmp_path: Path) -> None:
    done = run_child({"files": [], "renderer": str(tmp_path / "nowhere"), "context_length": 64})
    assert done.returncode == 1
    assert "nowhere" in done.stderr
    assert len(done.stderr.splitlines()) == 1

"""Which features a file uses, and what is said where the job's provider does not take one."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from tests.unit.tiny_renderer import write_base
from tuneway import checks
from tuneway.dataset.check import Kind, check
from tuneway.dataset.features import Feature, refusal
from tuneway.dataset.report import Report
from tuneway.dataset.rows import Place
from tuneway.dataset.template import Renderer
from tuneway.errors import JobFailure
from tuneway.providers.base import Preparation
from tuneway.types import JobError, Method

F = Feature
USER = {"role": "user", "content": "hi"}
ANSWER = {"role": "assistant", "content": "ab"}
PLAIN: dict[str, Any] = {"messages": [USER, ANSWER]}
TOOL = {"type": "function", "function": {"name": "f"}}
CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
RESULT = {"role": "tool", "tool_call_id": "call_1", "content": "x"}
ADDRESS = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}
DATA = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


def chat(*messages: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"messages": [*messages, ANSWER], **more}


def pair(**changes: Any) -> dict[str, Any]:
    return {"input": {"messages": [USER]}, "preferred_output": [ANSWER], "non_preferred_output": [ANSWER], **changes}


USES: dict[str, tuple[Method, dict[str, Any], set[Feature]]] = {
    "none": (Method.SUPERVISED, PLAIN, set()),
    "defaults": (
        Method.SUPERVISED,
        {
            "messages": [{**USER, "name": None}, {**ANSWER, "weight": 1, "tool_calls": None}],
            "tools": [],
            "functions": None,
            "parallel_tool_calls": True,
        },
        set(),
    ),
    "weight": (Method.SUPERVISED, chat(USER, {**ANSWER, "weight": 0}, USER), {F.WEIGHT}),
    "tools": (Method.SUPERVISED, chat(USER, tools=[TOOL]), {F.TOOLS}),
    "a call": (Method.SUPERVISED, chat(USER, {"role": "assistant", "tool_calls": [CALL]}, RESULT), {F.TOOLS}),
    "calls at once": (
        Method.SUPERVISED,
        chat(USER, {"role": "assistant", "tool_calls": [CALL, {**CALL, "id": "call_2"}]}),
        {F.TOOLS, F.PARALLEL_TOOL_CALLS},
    ),
    "functions": (Method.SUPERVISED, chat(USER, functions=[{"name": "f"}]), {F.TOOLS, F.FUNCTIONS}),
    "a function's call": (
        Method.SUPERVISED,
        chat(USER, {"role": "assistant", "function_call": CALL["function"]}),
        {F.TOOLS, F.FUNCTIONS},
    ),
    "a function's result": (
        Method.SUPERVISED,
        chat(USER, {"role": "function", "name": "f", "content": "x"}),
        {F.TOOLS, F.FUNCTIONS},
    ),
    "an image": (Method.SUPERVISED, chat({"role": "user", "content": [DATA]}), {F.IMAGES}),
    "an image's address": (
        Method.SUPERVISED,
        chat({"role": "user", "content": [DATA, ADDRESS]}),
        {F.IMAGES, F.IMAGE_URLS},
    ),
    "a name": (Method.SUPERVISED, chat({**USER, "name": "Ann"}), {F.NAMES}),
    "developer": (Method.SUPERVISED, chat({"role": "developer", "content": "x"}, USER), {F.DEVELOPER}),
    "in a prompt": (
        Method.REINFORCEMENT,
        {"messages": [{"role": "developer", "content": "x"}, USER], "tools": [TOOL], "weight": 0, "functions": [1]},
        {F.DEVELOPER, F.TOOLS},
    ),
    "in the input of a pair": (
        Method.DPO,
        pair(input={"messages": [{**USER, "name": "Ann"}, {**ANSWER, "weight": 0}], "tools": [TOOL]}),
        {F.NAMES, F.WEIGHT, F.TOOLS},
    ),
    "in an output": (
        Method.DPO,
        pair(non_preferred_output=[{"role": "assistant", "function_call": CALL["function"]}]),
        {F.TOOLS, F.FUNCTIONS},
    ),
}
PLAIN_ROWS = {Method.SUPERVISED: PLAIN, Method.DPO: pair(), Method.REINFORCEMENT: {"messages": [USER]}}


def written(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_bytes(b"".join(json.dumps(row).encode() + b"\n" for row in rows))
    return path


def checked(path: Path, method: Method, refused: set[Feature], *, kind: Kind = "training") -> Report:
    return check(path, kind=kind, renderer=None, context_length=64, method=method, refused=refused)


@pytest.mark.parametrize(("method", "row", "uses"), USES.values(), ids=USES)
def test_a_file_says_what_it_uses(tmp_path: Path, method: Method, row: dict[str, Any], uses: set[Feature]) -> None:
    plain = PLAIN_ROWS[method]
    path = written(tmp_path / "f.jsonl", plain, plain, row, row, *[plain] * 8)
    report = checked(path, method, set(F) - uses)
    assert (report.error, set(report.features)) == (None, uses)
    assert Report.from_json(json.loads(json.dumps(report.to_json()))) == report
    for feature in uses:
        report = checked(path, method, {feature})
        assert report.error is not None
        assert [(one.example, one.line) for one in report.errors] == [(3, 3)], "told once, of its first example"
        assert report.errors[0].message == refusal(feature, Place(3, 3)).message


def test_every_feature_is_tried_here() -> None:
    assert set().union(*(uses for _, _, uses in USES.values())) == set(F)


def test_what_is_said_of_a_feature_that_the_provider_does_not_take(tmp_path: Path) -> None:
    path = written(tmp_path / "f.jsonl", PLAIN, USES["a name"][1], USES["weight"][1], *[PLAIN] * 8)
    says = (
        'Example 3 has a message with "weight": 0 (line 3), and this job\'s provider does not train on that. '
        "Remove the weight, so that it is learnt too, or leave such examples out, or choose another provider."
    )
    opening = "The job failed due to an invalid training file. "
    error = checked(path, Method.SUPERVISED, {F.WEIGHT}).error
    assert error == JobError("invalid_training_file", opening + says, "training_file")
    error = checked(path, Method.SUPERVISED, {F.WEIGHT}, kind="validation").error
    opening = opening.replace("training", "validation")
    assert error == JobError("invalid_validation_file", opening + says, "validation_file")


def test_an_earlier_error_comes_first(tmp_path: Path) -> None:
    rows = [{}, USES["weight"][1], USES["calls at once"][1], *[PLAIN] * 8]
    report = checked(
        written(tmp_path / "f.jsonl", *rows), Method.SUPERVISED, {F.WEIGHT, F.TOOLS, F.PARALLEL_TOOL_CALLS}
    )
    assert report.error is not None
    assert report.error.message.endswith("Example 1 is missing key 'messages'")
    assert [one.line for one in report.errors] == [1, 2, 3, 3]
    assert report.n_errors == 4


def test_each_feature_is_told_once(tmp_path: Path) -> None:
    weight, both = USES["weight"][1], chat({**USER, "name": "Ann"}, {**ANSWER, "weight": 0}, USER)
    report = checked(written(tmp_path / "f.jsonl", weight, both, both), Method.SUPERVISED, {F.WEIGHT, F.NAMES})
    assert [(one.line, '"weight"' in one.message) for one in report.errors] == [(1, True), (2, False)]


def test_a_renderer_reports_and_refuses_features_too(tmp_path: Path) -> None:
    renderer = Renderer(write_base(tmp_path / "base"))
    path = written(tmp_path / "f.jsonl", USES["a name"][1], *[PLAIN] * 9)
    report = check(path, kind="training", renderer=renderer, context_length=64)
    assert (report.error, report.features, report.n_warnings) == (None, (F.NAMES,), 1)
    report = check(path, kind="training", renderer=renderer, context_length=64, refused={F.NAMES})
    assert report.error is not None
    assert report.error.code == "invalid_training_file"


def test_the_warning_of_names_is_for_an_example_that_has_one(tmp_path: Path) -> None:
    renderer = Renderer(write_base(tmp_path / "base"))
    image = {"messages": [{**USER, "name": "Ann", "content": [ADDRESS]}, ANSWER]}
    report = check(written(tmp_path / "f.jsonl", image, PLAIN), kind="validation", renderer=renderer, context_length=64)
    assert (report.n_errors, report.n_warnings) == (1, 0)


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["no mark", "a mark"])
@pytest.mark.parametrize("method", Method)
def test_a_byte_order_mark_is_reported(tmp_path: Path, method: Method, mark: bytes) -> None:
    path = written(tmp_path / "f.jsonl", *[PLAIN_ROWS[method]] * 10)
    path.write_bytes(mark + path.read_bytes())
    report = checked(path, method, set())
    assert (report.error, report.bom) == (None, bool(mark))
    assert Report.from_json(json.loads(json.dumps(report.to_json()))) == report


# ------------------------------------------------------------------------------------------------ the gateway's call


def call(path: Path, **options: Any) -> list[Report]:
    file = checks.FileToCheck(path, "training", None)
    return asyncio.run(checks.check([file], Preparation(context_length=64), **options))


def test_the_child_is_told_of_the_method_and_of_what_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "f.jsonl", *[USES["in an output"][1]] * 10)
    refused = {F.WEIGHT, F.FUNCTIONS}
    assert call(path, method=Method.DPO, refused=refused) == [checked(path, Method.DPO, refused)]
    assert call(path, method=Method.DPO)[0].error is None
    error = call(path)[0].error
    assert error is not None
    assert error.message.endswith("(provided method=supervised).")


def test_a_child_that_knows_no_such_feature_says_so(tmp_path: Path) -> None:
    with pytest.raises(JobFailure, match="'telepathy' is not a valid Feature"):
        call(written(tmp_path / "f.jsonl", PLAIN), refused={"telepathy"})

"""`/v1/fine_tuning/alpha/graders` through the whole gateway, by the official SDK and by hand."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from typing import Any

import openai
import pytest

RUN, VALIDATE = "/v1/fine_tuning/alpha/graders/run", "/v1/fine_tuning/alpha/graders/validate"

STRING = {
    "type": "string_check",
    "name": "exact",
    "input": "{{sample.output_text}}",
    "reference": "{{item.answer}}",
    "operation": "eq",
}
SIMILAR = {
    "type": "text_similarity",
    "name": "near",
    "input": "{{sample.output_text}}",
    "reference": "{{item.answer}}",
    "evaluation_metric": "fuzzy_match",
}
MESSAGES = [
    {"role": "developer", "content": "Rate the answer."},
    {"role": "user", "content": {"type": "input_text", "text": "{{sample.output_text}}"}},
    {"role": "assistant", "content": [{"type": "output_text", "text": "I see."}, "plain"], "type": "message"},
]
SCORE = {
    "type": "score_model",
    "name": "judge",
    "model": "fake-base",
    "input": MESSAGES,
    "sampling_params": {"temperature": 0, "max_completions_tokens": 16},
    "range": [1, 5],
}
LABEL = {
    "type": "label_model",
    "name": "tone",
    "model": "fake-base",
    "input": MESSAGES,
    "labels": ["kind", "rude"],
    "passing_labels": ["kind"],
}
MULTI = {
    "type": "multi",
    "name": "both",
    "graders": {"exact": STRING, "near": SIMILAR},
    "calculate_output": "(exact + near) / 2",
}


@pytest.mark.parametrize("grader", [STRING, SIMILAR, SCORE], ids=lambda grader: grader["type"])
def test_a_valid_grader_is_echoed(gateway: Any, grader: dict[str, Any]) -> None:
    valid = gateway.client.fine_tuning.alpha.graders.validate(grader=grader)
    assert valid.grader.to_dict(mode="json") == grader


@pytest.mark.parametrize("grader", [LABEL, MULTI, {**MULTI, "graders": LABEL, "calculate_output": "tone"}])
def test_what_the_sdk_has_no_model_for_is_echoed(gateway: Any, grader: dict[str, Any]) -> None:
    """OpenAI's schema has one grader in a multi grader, and no label grader outside of it; its service takes both."""
    answer = gateway.http.post(VALIDATE, json={"grader": grader})
    assert (answer.status_code, answer.json()) == (200, {"grader": grader})


def test_defaults_are_filled_in(gateway: Any) -> None:
    given = {name: value for name, value in SCORE.items() if name not in ("range", "sampling_params")}
    answer = gateway.http.post(VALIDATE, json={"grader": {**given, "sampling_params": {"seed": None}}})
    assert answer.json()["grader"] == {**given, "range": [0, 1], "sampling_params": {}}


def test_a_multi_grader_runs(gateway: Any) -> None:
    graded = gateway.client.fine_tuning.alpha.graders.run(grader=MULTI, model_sample="same", item={"answer": "same"})
    assert (graded.reward, graded.sub_rewards) == (1, {"exact": 1, "near": 1})
    assert (graded.metadata.name, graded.metadata.type) == ("both", "multi")
    assert (graded.metadata.token_usage, graded.metadata.sampled_model_name) == (None, None)


def test_the_whole_answer(gateway: Any) -> None:
    answer = gateway.http.post(RUN, json={"grader": STRING, "model_sample": "x"}).json()
    assert answer["metadata"].pop("execution_time") >= 0
    named = "formula_parse sample_parse truncated_observation unresponsive_reward other python_grader_server"
    named += " python_grader_runtime model_grader_server model_grader_refusal model_grader_parse"
    assert answer == {
        "reward": 0,
        "metadata": {
            "name": "exact",
            "type": "string_check",
            "errors": {f"{name}_error": False for name in named.split()}
            | {
                "invalid_variable_error": True,
                "python_grader_server_error_type": None,
                "python_grader_runtime_error_details": None,
                "model_grader_server_error_details": None,
            },
            "scores": {},
            "token_usage": None,
            "sampled_model_name": None,
        },
        "sub_rewards": {},
        "model_grader_token_usage_per_model": {},
    }


@pytest.mark.parametrize("grader", [SCORE, LABEL], ids=lambda grader: grader["type"])
def test_a_judge_that_does_not_exist_is_a_404(gateway: Any, grader: dict[str, Any]) -> None:
    with pytest.raises(openai.NotFoundError) as refused:
        gateway.client.fine_tuning.alpha.graders.run(grader={**grader, "model": "nobody"}, model_sample="x")
    assert (refused.value.param, refused.value.code) == ("grader.model", "model_not_found")


@pytest.mark.parametrize("grader", [SCORE, LABEL], ids=lambda grader: grader["type"])
def test_a_judge_is_asked(gateway: Any, grader: dict[str, Any]) -> None:
    """A judge is held to the form of a grade, so that what it says can be read, or its server says what is wrong."""
    model = next(model.id for model in gateway.client.models.list() if model.id.startswith("fake"))
    answer = gateway.client.fine_tuning.alpha.graders.run(grader={**grader, "model": model}, model_sample="x")
    errors = answer.metadata.errors
    assert not errors.api_model_grader_parse_error
    if errors.api_model_grader_server_error:
        assert (answer.reward, bool(errors.api_model_grader_server_error_details)) == (0, True)
        return
    assert 0 <= answer.reward <= 5
    assert answer.metadata.sampled_model_name == model
    assert list(answer.api_model_grader_token_usage_per_model) == [model]


def _with(grader: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {"grader": {**grader, **changes}, "model_sample": "x"}


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({"model_sample": "x"}, "grader", "missing_required_parameter"),
        ({"grader": STRING}, "model_sample", "missing_required_parameter"),
        ({"grader": STRING, "model_sample": 1}, "model_sample", "invalid_type"),
        ({"grader": STRING, "model_sample": "x", "item": []}, "item", "invalid_type"),
        ({"grader": STRING, "model_sample": "x", "extra": 1}, "extra", "unknown_parameter"),
        ({"grader": "x", "model_sample": "x"}, "grader", "invalid_type"),
        ({"grader": {"name": "x"}, "model_sample": "x"}, "grader.type", "missing_required_parameter"),
        (_with(STRING, type="vibes"), "grader.type", "invalid_value"),
        (_with(STRING, type=["multi"]), "grader.type", "invalid_value"),
        (_with(STRING, operation="neq"), "grader.operation", "invalid_value"),
        (_with(STRING, input=["x"]), "grader.input", "invalid_type"),
        (_with(STRING, pass_threshold=1), "grader.pass_threshold", "unknown_parameter"),
        (_with(SIMILAR, evaluation_metric="cosine"), "grader.evaluation_metric", "invalid_value"),
        (_with(SCORE, range=[1]), "grader.range", "invalid_value"),
        (_with(SCORE, range=[2, 1]), "grader.range", "invalid_value"),
        (_with(SCORE, sampling_params={"top_k": 1}), "grader.sampling_params.top_k", "unknown_parameter"),
        (_with(SCORE, input=[{"role": "tool", "content": "x"}]), "grader.input.0.role", "invalid_value"),
        (_with(SCORE, input=[{"role": "user", "content": 1}]), "grader.input.0.content", "invalid_type"),
        (
            _with(SCORE, input=[{"role": "user", "content": [{"type": "x"}]}]),
            "grader.input.0.content.0.type",
            "invalid_value",
        ),
        (
            _with(SCORE, input=[{"role": "user", "content": [{"type": "input_text"}]}]),
            "grader.input.0.content.0.text",
            "missing_required_parameter",
        ),
        (_with(LABEL, passing_labels=["fine"]), "grader.passing_labels", "invalid_value"),
        (_with(MULTI, graders={}), "grader.graders", "invalid_value"),
        (_with(MULTI, graders={"m": MULTI}), "grader.graders.m.type", "invalid_value"),
        (_with(MULTI, graders=MULTI), "grader.graders.type", "invalid_value"),
        (_with(MULTI, graders={"a": {**STRING, "name": 1}}), "grader.graders.a.name", "invalid_type"),
        (_with(MULTI, graders={str(n): STRING for n in range(33)}), "grader.graders", "object_above_max_properties"),
        (_with({"type": "python", "name": "p", "source": "x"}), "grader.type", "invalid_value"),
    ],
)
def test_a_wrong_request_is_named(gateway: Any, body: dict[str, Any], param: str, code: str) -> None:
    answer = gateway.http.post(RUN, json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (400, param, code)
    assert "<" not in error["message"].replace("<=", "")


@pytest.mark.parametrize(
    ("grader", "param"),
    [
        ({**STRING, "input": "{{item}}"}, "grader.input"),
        ({**SCORE, "input": [{"role": "user", "content": ["{{x.y}}"]}]}, "grader.input.0.content.0.text"),
        ({**MULTI, "calculate_output": "exact +"}, "grader.calculate_output"),
        ({**MULTI, "graders": {"exact": {**STRING, "reference": "{{"}}}, "grader.graders.exact.reference"),
    ],
)
def test_a_grader_that_cannot_work_is_not_valid(gateway: Any, grader: dict[str, Any], param: str) -> None:
    answer = gateway.http.post(VALIDATE, json={"grader": grader})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_a_body_that_is_too_large_is_a_413(gateway: Any) -> None:
    body = json.dumps({"grader": STRING, "model_sample": "x" * 2**20})
    answer = gateway.http.post(RUN, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 413


@pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")
def test_python_runs_where_the_operator_says_so(start: Callable[..., Any]) -> None:
    gateway = start('default_provider = "fake"\npython_graders = "on"\n')
    grader = {"type": "python", "name": "p", "source": "def grade(sample, item): return 0.5", "image_tag": "alpha"}
    try:
        valid = gateway.client.fine_tuning.alpha.graders.validate(grader=grader)
    except openai.BadRequestError as error:
        if "cannot be made here" not in error.message:
            raise
        pytest.skip(error.message)
    assert valid.grader.to_dict() == grader
    assert gateway.client.fine_tuning.alpha.graders.run(grader=grader, model_sample="x").reward == 0.5

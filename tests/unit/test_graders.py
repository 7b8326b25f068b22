"""Graders without HTTP: what they read, what they compute, and what hostile texts, formulas and sources get."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import pytest

from tuneway.errors import InvalidRequest, NotFound, UpstreamError
from tuneway.graders import Graders, formula, similarity, templates
from tuneway.graders.values import (
    Errors,
    Graded,
    Grader,
    LabelModel,
    Message,
    Multi,
    ScoreModel,
    StringCheck,
    TextSimilarity,
)

ITEM = {"answer": "Paris", "n": 3, "tags": ["a", "b"], "deep": {"x": {"y": True}}, "none": None, "ö-1": "ü"}


class Judge:
    """Answers with what it was given, and remembers what it was asked."""

    def __init__(self, *answers: Any, usage: int = 7) -> None:
        self.answers = list(answers)
        self.asked: list[Mapping[str, Any]] = []
        self.usage = usage

    async def __call__(self, project: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
        self.asked.append(body)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        message = answer if isinstance(answer, dict) else {"content": answer}
        counts = {"prompt_tokens": self.usage - 1, "completion_tokens": 1, "total_tokens": self.usage}
        return {"model": f"{body['model']}-1", "choices": [{"message": message}], "usage": counts}


def run(grader: Grader, output: str = "Paris", item: Mapping[str, Any] = ITEM, judge: Judge | None = None) -> Graded:
    return asyncio.run(Graders(judge or Judge(), python_graders=False).run("default", grader, output, item))


def validate(grader: Grader) -> None:
    asyncio.run(Graders(Judge(), python_graders=False).validate(grader))


def flags(errors: Errors) -> set[str]:
    return {one.name for one in fields(errors) if getattr(errors, one.name)}


def check(input: str, reference: str = "", operation: Any = "eq", name: str = "check") -> StringCheck:
    return StringCheck(name, input, reference, operation)


# ------------------------------------------------------------------------------------------------------- templates


@pytest.mark.parametrize(
    ("template", "rendered"),
    [
        ("{{item.answer}}", "Paris"),
        ("a {{ item.answer }}, {{item.n}}!", "a Paris, 3!"),
        ("{{item.deep.x.y}} {{item.deep.x}}", 'true {"y":true}'),
        ("{{item.tags[1]}} {{item.tags.0}} {{item.none}}", "b a null"),
        ("{{item.ö-1}}", "ü"),
        ("{{sample.output_text}}", '{"a":{"b":[1.5]}}'),
        ("{{sample.output_json.a.b}}", "[1.5]"),
        ("{{sample.output_tools}}", "[]"),
        ("{{sample.choices[0].message.content}}", '{"a":{"b":[1.5]}}'),
        ("} }} { no reference", "} }} { no reference"),
        ("", ""),
    ],
)
def test_references_are_filled_in(template: str, rendered: str) -> None:
    sample = templates.read_sample('{"a":{"b":[1.5]}}', ITEM)
    assert templates.render(template, sample) == rendered


@pytest.mark.parametrize(
    ("template", "flag"),
    [
        ("{{item.missing}}", "invalid_variable_error"),
        ("{{item.answer.x}}", "invalid_variable_error"),
        ("{{item.tags[2]}}", "invalid_variable_error"),
        ("{{item.tags.first}}", "invalid_variable_error"),
        ("{{sample.nothing}}", "invalid_variable_error"),
        ("{{item.answer", "invalid_variable_error"),
        ("{{sample.output_json.a}}", "sample_parse_error"),
    ],
)
def test_a_reference_that_leads_nowhere_is_no_grade(template: str, flag: str) -> None:
    graded = run(check(template, template, "eq"))
    assert (graded.reward, flags(graded.errors)) == (0, {flag})


@pytest.mark.parametrize("output", ["[" * 100_000, "NaN" * 2, '"\\ud800"', "1" * 5000, "[" * 66 + "]" * 66])
def test_a_hostile_sample_is_no_json(output: str) -> None:
    sample = templates.read_sample(output, {})
    assert (sample.is_json, sample.sample["output_json"], sample.sample["output_text"]) == (False, None, output)


@pytest.mark.parametrize(
    "template",
    [
        "{{",
        "{{}}",
        "{{item}}",
        "{{ item . answer }}",
        "{{env.PATH}}",
        "{{item.__class__.__mro__()}}",
        "{{item.n + 1}}",
        "{{ 7 * 7 }}",
        "{{item.answer|lower}}",
        "{% for x in y %}{{x}}{% endfor %}",
        "{{item." + "a" * 5000 + "}}",
        "{{item" + ".a" * 600_000 + "}}",
        "{{item." + "{{" * 200_000 + "}}",
    ],
)
@pytest.mark.parametrize("field", ["input", "reference"])
def test_a_malformed_template_is_refused(template: str, field: str) -> None:
    texts = {"input": "", "reference": "", field: template}
    with pytest.raises(InvalidRequest) as refused:
        validate(StringCheck("c", **texts, operation="eq"))
    assert refused.value.param == f"grader.{field}"
    assert field in refused.value.message


def test_references_cannot_blow_a_text_up() -> None:
    graded = run(check("{{sample.output_text}}" * 1000), "x" * 100_000)
    assert flags(graded.errors) == {"truncated_observation_error"}


# ---------------------------------------------------------------------------------------------------------- rules


@pytest.mark.parametrize(
    ("operation", "reference", "reward"),
    [
        ("eq", "Paris, France", 1),
        ("eq", "paris, france", 0),
        ("ne", "Paris", 1),
        ("ne", "Paris, France", 0),
        ("like", "France", 1),
        ("like", "france", 0),
        ("like", "Pa%", 0),
        ("ilike", "FRANCE", 1),
        ("ilike", "Spain", 0),
    ],
)
def test_string_check(operation: str, reference: str, reward: float) -> None:
    assert run(check("{{sample.output_text}}", reference, operation), "Paris, France").reward == reward


CAT = ("the cat is on the mat", "the cat sat on the mat")


@pytest.mark.parametrize(
    ("metric", "texts", "expected"),
    [
        # 2 · |LCS "ittn"| / (6 + 7)
        ("fuzzy_match", ("kitten", "sitting"), 8 / 13),
        ("fuzzy_match", ("same", "same"), 1),
        # matches 5/6, 3/5, 1/4, none of 3 (smoothed to 1/2), equal lengths
        ("bleu", CAT, (5 / 6 * 3 / 5 * 1 / 4 * 0.5 / 3) ** (1 / 4)),
        # two words of four: brevity e^(1 - 4/2), no orders beyond 2
        ("bleu", ("a b", "a b c d"), math.exp(-1)),
        ("bleu", ("x y", "a b"), 0),
        ("bleu", ("", "a"), 0),
        # 5 + 3 + 1 + 0 of 6 + 5 + 4 + 3
        ("gleu", CAT, 9 / 18),
        ("gleu", ("a b", "a b c d"), 3 / 10),
        ("rouge_1", CAT, 5 / 6),
        ("rouge_1", ("The, CAT!", "the cat"), 1),
        ("rouge_2", CAT, 3 / 5),
        ("rouge_3", CAT, 1 / 4),
        ("rouge_4", CAT, 0),
        ("rouge_5", ("a b c d e f", "a b c d e x"), 1 / 2),
        ("rouge_5", ("a b", "a b"), 0),
        ("rouge_l", CAT, 5 / 6),
        ("rouge_l", ("a x b", "a b c d"), 4 / 7),
        ("rouge_l", ("...", "a"), 0),
    ],
)
def test_text_similarity(metric: Any, texts: tuple[str, str], expected: float) -> None:
    grader = TextSimilarity("t", "{{sample.output_text}}", "{{item.reference}}", metric)
    assert run(grader, texts[0], {"reference": texts[1]}).reward == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("metric", similarity.REFUSED)
def test_a_metric_that_cannot_be_had_is_refused(metric: Any) -> None:
    grader = Multi("m", {"t": TextSimilarity("t", "", "", metric)}, "t")
    for refuse in (validate, run):
        with pytest.raises(InvalidRequest) as refused:
            refuse(grader)
        assert refused.value.param == "grader.graders.t.evaluation_metric"
        assert "rouge_l" in refused.value.message


def test_text_that_is_too_long_to_compare_is_refused() -> None:
    grader = TextSimilarity("t", "{{sample.output_text}}", "", "fuzzy_match")
    with pytest.raises(InvalidRequest, match=str(similarity.MAX_COMPARED)) as refused:
        run(grader, "x" * (similarity.MAX_COMPARED + 1))
    assert refused.value.param == "grader.input"


# --------------------------------------------------------------------------------------------------------- formulas


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a", 2),
        ("0.5 * a + b / 4", 2),
        ("a - b - 1", -3),
        ("-a ^ 2", -4),
        ("2 ^ a ^ 3", 256),
        ("(a + b) * .5e1", 30),
        ("a * -b", -8),
        ("min(a, b, 1) + max(b) + abs(-a)", 7),
        ("floor(2.7) + ceil(2.2)", 5),
        ("exp(0) + sqrt(b) + log(1)", 3),
        ("a ^ -1", 0.5),
        ("min * 2", 6),
    ],
)
def test_formulas(text: str, value: float) -> None:
    rewards = {"a": 2.0, "b": 4.0, "min": 3.0}
    assert formula.parse(text, rewards).value(rewards) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a +",
        "a b",
        "(a",
        "a)",
        "min()",
        "log(a, 2)",
        "c",
        "a ** 2",
        "a.real",
        "a if a else b",
        "__import__('os')",
        "pow(a, 2)",
        "a; b",
        "(" * 65 + "a" + ")" * 65,
        "-" * 65 + "a",
        "a^" * 65 + "a",
        "a+" * 3000 + "a",
    ],
)
def test_a_formula_that_cannot_be_read(text: str) -> None:
    graders = {"a": check("x", "x")}
    with pytest.raises(InvalidRequest) as refused:
        validate(Multi("m", graders, text))
    assert refused.value.param == "grader.calculate_output"
    graded = run(Multi("m", graders, text))
    assert (graded.reward, flags(graded.errors)) == (0, {"formula_parse_error"})


@pytest.mark.parametrize(
    "text", ["1 / zero", "log(zero)", "sqrt(zero-1)", "exp(1000)", "9^9^9^9", "1e999 - 1e999", "(zero-8)^.5"]
)
def test_a_formula_without_a_value_is_no_grade(text: str) -> None:
    multi = Multi("m", {"zero": check("x", "y")}, text)
    validate(multi)
    graded = run(multi)
    assert (graded.reward, flags(graded.errors)) == (0, {"other_error"})


def test_multi_weighs_its_graders() -> None:
    graders = {"exact": check("{{sample.output_text}}", "Paris"), "near": check("{{sample.output_text}}", "x", "like")}
    graded = run(Multi("m", graders, "0.75 * exact + 0.25 * near"))
    assert (graded.reward, graded.sub_rewards) == (0.75, {"exact": 1, "near": 0})


def test_no_formula_turns_a_failed_part_into_a_reward() -> None:
    graders = {"good": check("x", "x"), "bad": check("{{item.missing}}")}
    graded = run(Multi("m", graders, "good + 1 - bad"))
    assert (graded.reward, flags(graded.errors)) == (0, {"invalid_variable_error"})
    assert graded.sub_rewards == {"good": 1, "bad": 0}


# ----------------------------------------------------------------------------------------------------------- judges


def score(**changes: Any) -> ScoreModel:
    given: dict[str, Any] = {"messages": (Message("user", "Rate {{sample.output_text}}"),), **changes}
    return ScoreModel("s", "judge", **given)


def test_a_judge_gives_a_score() -> None:
    judge = Judge('{"result": 4.5}')
    parts = ({"type": "text", "text": "{{item.answer}}"}, {"type": "image_url", "image_url": {"url": "{{item.n}}"}})
    messages = (Message("developer", "Be strict."), Message("user", parts))
    graded = run(score(messages=messages, low=1, high=5, sampling={"seed": 1, "max_completion_tokens": 9}), judge=judge)
    assert (graded.reward, graded.model, graded.usage["judge-1"].total_tokens) == (4.5, "judge-1", 7)
    (asked,) = judge.asked
    schema = asked["response_format"]["json_schema"]["schema"]
    assert schema["properties"] == {"result": {"type": "number", "minimum": 1, "maximum": 5}}
    assert (asked["model"], asked["seed"], asked["max_completion_tokens"]) == ("judge", 1, 9)
    assert asked["messages"] == [
        {"role": "developer", "content": "Be strict."},
        {
            "role": "user",
            "content": [{"type": "text", "text": "Paris"}, {"type": "image_url", "image_url": {"url": "3"}}],
        },
    ]


@pytest.mark.parametrize(
    ("answer", "reward", "flag"),
    [
        ('{"result": 1}', 1, None),
        ('{"result": 7}', 1, None),
        ('{"result": -1}', 0, None),
        ('{"result": "1"}', 0, "model_grader_parse_error"),
        ('{"result": true}', 0, "model_grader_parse_error"),
        ('{"result": NaN}', 0, "model_grader_parse_error"),
        ('{"result": 1' + "0" * 400 + "}", 0, "model_grader_parse_error"),
        ('{"score": 1}', 0, "model_grader_parse_error"),
        ("[" * 100_000, 0, "model_grader_parse_error"),
        ("0.5", 0, "model_grader_parse_error"),
        (None, 0, "model_grader_parse_error"),
        ({"content": None, "refusal": "No."}, 0, "model_grader_refusal_error"),
    ],
)
def test_what_a_judge_may_answer(answer: Any, reward: float, flag: str | None) -> None:
    graded = run(score(), judge=Judge(answer))
    assert (graded.reward, flags(graded.errors)) == (reward, {flag} - {None})


@pytest.mark.parametrize(
    ("answer", "reward", "flag"),
    [
        ('{"result": "good"}', 1, None),
        ('{"result": "bad"}', 0, None),
        ('{"result": "ugly"}', 0, "model_grader_parse_error"),
        ('{"result": ["good"]}', 0, "model_grader_parse_error"),
    ],
)
def test_a_judge_gives_a_label(answer: str, reward: float, flag: str | None) -> None:
    judge = Judge(answer)
    graded = run(LabelModel("l", "judge", (Message("user", "?"),), ("good", "bad"), ("good",)), judge=judge)
    assert (graded.reward, flags(graded.errors)) == (reward, {flag} - {None})
    schema = judge.asked[0]["response_format"]["json_schema"]["schema"]
    assert schema["properties"]["result"]["enum"] == ["good", "bad"]


def test_a_judge_that_does_not_answer_is_no_grade() -> None:
    graded = run(score(), judge=Judge(UpstreamError("It is down.")))
    assert graded.errors == Errors(model_grader_server_error=True, model_grader_server_error_details="It is down.")


def test_a_judge_that_does_not_exist_is_refused() -> None:
    multi = Multi("m", {"one": score(), "two": check("a")}, "one")
    with pytest.raises(NotFound) as refused:
        run(multi, judge=Judge(NotFound("no such model", code="model_not_found")))
    assert (refused.value.param, refused.value.code) == ("grader.graders.one.model", "model_not_found")


def test_tokens_are_counted_per_judge() -> None:
    graded = run(Multi("m", {"a": score(), "b": score()}, "a + b"), judge=Judge('{"result": 1}', '{"result": 0.5}'))
    assert graded.reward == 1.5
    assert (list(graded.usage), graded.usage["judge-1"].prompt_tokens) == (["judge-1"], 12)


def test_a_judge_is_not_asked_about_a_missing_reference() -> None:
    judge = Judge()
    graded = run(score(messages=(Message("user", "{{item.missing}}"),)), judge=judge)
    assert (flags(graded.errors), judge.asked) == ({"invalid_variable_error"}, [])


def test_errors_of_parts_are_put_together() -> None:
    one = Errors(other_error=True, model_grader_server_error_details="first")
    other = Errors(sample_parse_error=True, model_grader_server_error_details="second")
    assert one | other == Errors(other_error=True, sample_parse_error=True, model_grader_server_error_details="first")

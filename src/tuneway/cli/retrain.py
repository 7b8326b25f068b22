"""`tuneway retrain`: the training of a job once more, on another provider's model."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import typer

from tuneway.cli.client import gateway
from tuneway.cli.exits import Exit, Failure
from tuneway.cli.options import JobId, Json, Url
from tuneway.cli.output import document, note, wire
from tuneway.cli.tune import file_id
from tuneway.cli.watch import conclude, extension, watch

if TYPE_CHECKING:
    from openai import OpenAI
    from openai.types.fine_tuning import FineTuningJob

Answer = dict[str, Any]

OPENAI_RATES = ("openai", "azure-openai")
"""Kinds of accounts whose learning rate multipliers mean the same: they have the same base models."""
OPTIONAL = ("validation_file", "suffix", "seed", "metadata")
"""Fields that not every provider takes."""

Provider = Annotated[
    str, typer.Option("--provider", metavar="NAME", help="Where to train: local, or an account.", show_default=False)
]
Base = Annotated[str | None, typer.Option("--model", help="The base model there [default: the job's own].")]
Data = Annotated[
    str | None,
    typer.Option("--training-file", metavar="FILE", help="A JSONL file or an id in place of the job's own file."),
]
Watch = Annotated[bool, typer.Option("--watch/--no-watch", help="Follow the new job until it ends.")]


@dataclass(frozen=True, slots=True)
class Plan:
    """What the new job is asked for, what of the old one is in it, and what is not, with the reason."""

    body: Mapping[str, Any]
    carried: Mapping[str, Any]
    left: Mapping[str, str]


def retrain(
    job: JobId,
    provider: Provider,
    model: Base = None,
    training_file: Data = None,
    watching: Watch = True,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Train a job's model again elsewhere, on the same data; prints the lines of model_map for the old names."""
    with gateway(url) as client:
        old = client.fine_tuning.jobs.retrieve(job)
        data = _data_of(client, old) if training_file is None else file_id(client, training_file)
        plan = _plan(old, _account(client, provider), provider, model, data)
        _say(plan, old, provider)
        new = client.fine_tuning.jobs.create(
            **plan.body,
            extra_body={"tuneway": {"provider": provider}},
            extra_headers={"Idempotency-Key": str(uuid.uuid4())},
        )
        note(f"Created {new.id}")
        if watching:
            new = watch(client, new.id)
        before = _before(client, old)
    code = conclude(new, as_json=False) if watching else Exit.OK
    mapped = _model_map(old, new, provider)
    if as_json:
        document({"job": wire(new), "carried_over": plan.carried, "not_carried_over": plan.left, "model_map": mapped})
    elif code == Exit.OK:
        _print_map(mapped, old, new, before)
    raise typer.Exit(code)


def _data_of(client: OpenAI, old: FineTuningJob) -> str:
    """Raises Failure where the job's file is not here (any more)."""
    from openai import NotFoundError

    try:
        return client.files.retrieve(old.training_file).id
    except NotFoundError:
        raise Failure(
            f"The training file {old.training_file} of {old.id} is not here.",
            hint="--training-file FILE uploads its data, or names a file that is here.",
        ) from None


def _plan(old: FineTuningJob, account: Answer | None, provider: str, model: str | None, training_file: str) -> Plan:
    """Raises Failure for a job whose base nobody else has, where no model is named."""
    if model is None and old.model.startswith("ft:") and provider != extension(old).get("provider"):
        raise Failure(
            f"{old.id} went on from {old.model}, which {provider} does not have.",
            hint="Name the model to train by --model: a base model, or what a retrained job has made of that one.",
        )
    can = (account or {}).get("capabilities") or {}
    carried: dict[str, Any] = {"training_file": training_file}
    left: dict[str, str] = {}
    wanted = {**old.to_dict(mode="json"), "suffix": (old.model_extra or {}).get("user_provided_suffix")}
    for name in OPTIONAL:
        if wanted.get(name) is None or (name == "metadata" and not wanted[name]):
            continue
        if can.get(name) is False:
            left[name] = f"{provider} does not take it"
        else:
            carried[name] = wanted[name]
    if "suffix" in carried:
        carried["suffix"] = re.sub(r"[^A-Za-z0-9_-]+", "-", carried["suffix"])[:64]
    if wanted.get("integrations"):
        left["integrations"] = "they belong to the account of the old job"
    method, numbers = _method(wanted, account, provider, left)
    carried |= numbers
    body = {name: value for name, value in carried.items() if name in ("training_file", *OPTIONAL)}
    return Plan({"model": model or old.model, **body, "method": method}, carried, left)


def _method(
    wanted: Answer, account: Answer | None, provider: str, left: dict[str, str]
) -> tuple[Answer, dict[str, Any]]:
    """The method with the numbers that hold elsewhere, and these; the others go to `left`."""
    method = wanted["method"]
    kind = method["type"]
    own = dict(method.get(kind) or {})
    numbers = {**wanted["hyperparameters"], **(own.pop("hyperparameters", None) or {})}
    for name, value in list(numbers.items()):
        if value == "auto":
            left[name] = "the old job never chose it; it is left to auto"
            del numbers[name]
    rate = numbers.get("learning_rate_multiplier")
    if rate is not None and (account is None or account["kind"] not in OPENAI_RATES):
        left["learning_rate_multiplier"] = (
            f"{rate} scales the rate of {wanted['model']}, and another base has its own; it is left to auto"
        )
        del numbers["learning_rate_multiplier"]
    return {"type": kind, kind: {**own, "hyperparameters": numbers}}, {**own, **numbers}


def _account(client: OpenAI, provider: str) -> Answer | None:
    """The account; None for a provider that needs none, such as local, and for one that the create will refuse."""
    from openai import NotFoundError

    try:
        return client.get(f"/tuneway/providers/{quote(provider, safe='')}", cast_to=Answer)
    except NotFoundError:
        return None


def _before(client: OpenAI, old: FineTuningJob) -> Answer | None:
    """The old job's model, as long as it is a model of the gateway."""
    from openai import NotFoundError

    if old.fine_tuned_model is None:
        return None
    try:
        found = client.models.retrieve(old.fine_tuned_model)
    except NotFoundError:
        return None
    return (found.model_extra or {}).get("tuneway")


def _say(plan: Plan, old: FineTuningJob, provider: str) -> None:
    note(f"Training {plan.body['model']} at {provider} as {old.id} trained {old.model}")
    for name, value in plan.carried.items():
        shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        note(f"  carried over      {name} = {shown}")
    for name, reason in plan.left.items():
        note(f"  not carried over  {name}: {reason}")


def _model_map(old: FineTuningJob, new: FineTuningJob, provider: str) -> dict[str, str | None]:
    """From old names to what does their work now; None where that is not known yet."""
    found: dict[str, str | None] = {}
    moved = (provider, new.model) != (extension(old).get("provider"), old.model)
    if moved and ":" not in old.model and ":" not in new.model:
        found[old.model] = f"{provider}:{new.model}"
    if old.fine_tuned_model is not None:
        found[old.fine_tuned_model] = new.fine_tuned_model
    return found


def _print_map(mapped: Mapping[str, str | None], old: FineTuningJob, new: FineTuningJob, before: Answer | None) -> None:
    """The lines of tuneway.toml on stdout, and what they need to take effect."""
    if new.fine_tuned_model is None:
        note(f"When it has succeeded, `tuneway jobs show {new.id}` has the model's name for these lines.")
    else:
        note(f"The model is {new.fine_tuned_model}")
    if not mapped:
        return
    note("Lines of tuneway.toml for code that asks by the old names, from the next start of the gateway on:")
    typer.echo("[model_map]")
    for name, target in mapped.items():
        typer.echo(f"{_quoted(name)} = {_quoted(target or 'THE NEW MODEL')}")
    if before is None:
        return
    model, place = old.fine_tuned_model, before["provider"]
    note(f"\nAs long as {model} is a model of the gateway, requests for it go to {place}, whatever model_map says.")
    what = f"which leaves it at {place} as it is" if before["imported"] else f"which deletes it at {place} too"
    note(f"`tuneway models delete {model}`, {what}, lets the new model take its place.")


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)

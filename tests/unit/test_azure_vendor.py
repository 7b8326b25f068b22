"""Azure OpenAI against its simulator: what is sent, how answers are read, and the deployments that cost money.

Longer than other files by its tables: of options, of what each version takes, and of Azure's words.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import pytest

from tests.simulators.azure import ARM_SCOPE, ENTRA_SCOPE, AzureSimulator
from tuneway.errors import InvalidRequest, JobFailure, ProviderError, ProviderSilent, TunewayError, UnsupportedOperation
from tuneway.outbound import Outbound
from tuneway.providers import azure_arm
from tuneway.providers.azure_openai import FILE_STATUSES, KIND, MODERN, STATUSES, AzureOpenAI, root_of
from tuneway.providers.line import Line
from tuneway.providers.vendor import Options, same_job
from tuneway.types import Deployment, Hyperparameters, Method, Model

T = TypeVar("T")
HI = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}
ROWS = (json.dumps(HI) + "\n").encode() * 12
DPO_ROW = {"input": {"messages": HI["messages"][:1]}, "preferred_output": [], "non_preferred_output": []}
BASE = "gpt-4o-mini-2024-07-18"
OLD = "2024-10-21"
JOB = {"model": BASE, "training_file": "file-1"}
GUID = "00000000-0000-0000-0000-000000000001"
OUTSIDE = {"azure_resource_name": "acme", "api_key": "k"}
GRADED = {"type": "reinforcement", "reinforcement": {"grader": {}}}
EXTRAS = {"metadata": {"a": "b"}, "integrations": [{"type": "wandb"}]}
SECRETS = ("s3cret-key", "s3cret-client", "s3cret-arm", "entra-token", "arm-token")


def numbers(**chosen: Any) -> dict[str, Any]:
    return {"hyperparameters": chosen}


def method(kind: str, **chosen: Any) -> dict[str, Any]:
    return {"type": kind, kind: numbers(**chosen)}


DPO = method("dpo", beta=0.2, n_epochs="auto")


@pytest.fixture
def azure() -> Iterator[AzureSimulator]:
    with AzureSimulator() as simulator:
        yield simulator


@pytest.fixture(autouse=True)
def _no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(azure_arm, "FIRST_WAIT", 0.01)


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


def vendor(azure: AzureSimulator | None = None, **options: str | None) -> AzureOpenAI:
    """At the simulator by its key, or nowhere that is called. None takes an option away."""
    given = OUTSIDE if azure is None else {"base_url": azure.url, "api_key": azure.key}
    values = {name: value for name, value in {**given, **options}.items() if value is not None}
    assert values.keys() <= KIND.options.keys() | KIND.secrets.keys()
    line = Line("acme-azure", Outbound(["127.0.0.1"]).exchange)
    built = KIND.build(Options(values, lambda name: f"<{name}>"), line)
    assert isinstance(built, AzureOpenAI)
    return built


def by_entra(azure: AzureSimulator, **more: str | None) -> dict[str, str | None]:
    return {
        "api_key": None,
        "azure_auth_mode": "entra",
        "azure_entra_tenant_id": azure.tenant,
        "azure_entra_client_id": azure.client_id,
        "azure_entra_client_secret": azure.client_secret,
        "login_url": azure.login_url,
        **more,
    }


def by_arm(azure: AzureSimulator, **more: str | None) -> dict[str, str | None]:
    return {
        "subscription": azure.subscription,
        "resource_group": azure.resource_group,
        "account": azure.account,
        "arm_url": azure.arm_url,
        "arm_token": azure.arm_token,
        **more,
    }


async def pieces(content: bytes) -> AsyncIterator[bytes]:
    yield content


async def uploaded(account: AzureOpenAI, content: bytes = ROWS, name: str = "train.jsonl") -> str:
    """A file that is ready to be trained on."""
    made = await account.upload(name, "fine-tune", pieces(content), len(content))
    for _ in range(5):
        if (await account.file(made["id"]))["status"] == "processed":
            return str(made["id"])
    raise AssertionError("the file was never processed")


async def trained(azure: AzureSimulator, account: AzureOpenAI, **more: Any) -> dict[str, Any]:
    """A job that has succeeded."""
    made = await account.create_job({"model": BASE, "training_file": await uploaded(account), **more})
    azure.finish_job(made["id"])
    return await account.job(made["id"])


def tuned(upstream: str, **more: Any) -> Model:
    model = Model(
        seq=1,
        id="ft:gpt-4o-mini-2024-07-18:acme:Tickets:Ab12Cd34",
        project_id="p",
        created_at=1,
        provider="acme-azure",
        base=BASE,
        job_id="ftjob-1",
        upstream_model=upstream,
        step_number=None,
        data_sha256="0" * 64,
        hyperparameters=Hyperparameters(),
    )
    return replace(model, **more)


class Heard:
    """What a job's owner was told."""

    def __init__(self) -> None:
        self.said: list[str] = []

    async def __call__(self, message: str) -> None:
        self.said.append(message)


# --------------------------------------------------------------------------------------------- where, and by what right


@pytest.mark.parametrize("path", ["", "/", "/openai", "/openai/", "/openai/v1", "/openai/v1/", "/v1", "/v1//"])
def test_an_endpoint_is_brought_to_its_root(path: str) -> None:
    for root in ("https://acme.cognitiveservices.azure.com", "http://127.0.0.1:9", "https://proxy.example/azure"):
        assert root_of(root + path) == root


@pytest.mark.parametrize(
    ("options", "url"),
    [
        ({}, "https://acme.openai.azure.com/openai/files?api-version=2024-10-21"),
        ({"azure_api_version": MODERN}, f"https://acme.openai.azure.com/openai/files?api-version={MODERN}"),
        ({"azure_api_version": "v1"}, "https://acme.openai.azure.com/openai/v1/files"),
        ({"azure_api_version": "preview"}, "https://acme.openai.azure.com/openai/v1/files?api-version=preview"),
        ({"base_url": "https://b.example/openai/v1/"}, "https://b.example/openai/files?api-version=2024-10-21"),
        ({"azure_foundry_url": "https://f.example/v1"}, "https://f.example/openai/files?api-version=2024-10-21"),
    ],
)
def test_the_version_decides_the_path(options: dict[str, str], url: str) -> None:
    assert vendor(**options).url("/files") == url
    joined = "&" if "?" in url else "?"
    asked = vendor(**options).url("/files", "limit=2&api-version=2023-05-15")
    assert asked == f"{url}{joined}limit=2", "a caller's own version is the gateway's business"


@pytest.mark.parametrize("name", ["evil.com/", "a.b", "x#", "%2e", "a/b", "-a", "a", "a\n", "acme@evil.com", "ä" * 3])
def test_a_resource_s_name_cannot_become_another_host(name: str) -> None:
    for option in ("azure_resource_name", "account"):
        more = {"subscription": GUID, "resource_group": "rg", "arm_token": "t"} if option == "account" else {}
        with pytest.raises(InvalidRequest) as refused:
            vendor(**{option: name, **more})
        assert refused.value.param == f"<{option}>"
        assert name in ("a", "a/b", "-a", "a\n") or name not in refused.value.message


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("base_url", "https://acme.openai.azure.com@evil.com"),
        ("azure_foundry_url", "file:///etc/passwd"),
        ("azure_foundry_url", "https://a.services.ai.azure.com/?x=y"),
        ("azure_api_version", "2024-10-21&x=y"),
        ("azure_api_version", "latest"),
        ("azure_deployment_id", "../models"),
        ("azure_entra_tenant_id", "../../evil"),
        ("azure_entra_tenant_id", "a..b"),
        ("azure_ad_token", "a\r\nhost: evil"),
        ("resource_group", ".."),
        ("resource_group", "rg/x"),
        ("subscription", "not-a-guid"),
        ("deployment_sku", "Premium"),
        ("deployment_capacity", "0"),
        ("deploy", "maybe"),
    ],
)
def test_options_that_enter_urls_and_headers_are_checked(option: str, value: str) -> None:
    arm = {"subscription": GUID, "resource_group": "rg", "arm_token": "t"}
    entra = {"azure_auth_mode": "entra", "azure_entra_client_id": "c", "azure_entra_client_secret": "s"}
    more = arm if option in KIND.not_relayed else {}
    more = entra if option == "azure_entra_tenant_id" else more
    with pytest.raises(InvalidRequest) as refused:
        vendor(**{**more, option: value})
    assert refused.value.param == f"<{option}>"


def test_what_a_relay_s_caller_may_not_give() -> None:
    arm = {name for name in KIND.options | KIND.secrets if name.startswith(("arm_", "deploy", "login", "sub", "res"))}
    assert arm | {"account"} == KIND.not_relayed
    assert KIND.path_of_keys == "azure"
    for mode in ("managed", "workload"):
        with pytest.raises(InvalidRequest, match="identity of the machine") as refused:
            vendor(azure_auth_mode=mode)
        assert refused.value.param == "<azure_auth_mode>"


@pytest.mark.parametrize(
    ("options", "missing"),
    [
        ({"azure_resource_name": None}, "azure_resource_name"),
        ({"api_key": None}, "api_key"),
        ({"api_key": None, "azure_auth_mode": "entra"}, "azure_entra_tenant_id"),
        ({"subscription": GUID}, "resource_group"),
        ({"deploy": "yes"}, "subscription"),
        ({"deployment_sku": "standard"}, "subscription"),
        ({"subscription": GUID, "resource_group": "rg"}, "arm_tenant_id"),
        (
            {"subscription": GUID, "resource_group": "rg", "arm_client_id": "c", "arm_tenant_id": "t"},
            "arm_client_secret",
        ),
    ],
)
def test_half_a_configuration_is_refused_by_the_name_of_what_is_missing(
    options: dict[str, str | None], missing: str
) -> None:
    with pytest.raises(InvalidRequest, match=f"Missing <{missing}>"):
        vendor(**options)


def test_every_model_at_one_deployment_is_refused_where_each_gets_its_own(azure: AzureSimulator) -> None:
    with pytest.raises(InvalidRequest, match="azure_deployment_id"):
        vendor(azure, **by_arm(azure, azure_deployment_id="mine"))


def test_a_key_and_a_token_go_into_their_own_headers(azure: AzureSimulator) -> None:
    async def ask() -> None:
        await vendor(azure).list_models()
        await vendor(azure, api_key=None, azure_ad_token=azure.entra_token).list_models()
        await vendor(azure, azure_ad_token=f"Bearer {azure.entra_token}").list_models()

    run(ask())
    by_key, by_token, by_both = (seen.headers for seen in azure.asked("models"))
    assert by_key["api-key"] == azure.key
    assert "authorization" not in by_key
    for headers in (by_token, by_both):
        assert headers["authorization"] == f"Bearer {azure.entra_token}"
        assert "api-key" not in headers
    assert azure.tokens_issued == []


def test_one_entra_token_serves_many_calls(azure: AzureSimulator, monkeypatch: pytest.MonkeyPatch) -> None:
    account = vendor(azure, **by_entra(azure))

    async def ask() -> None:
        azure.fault("token", "slow_before", seconds=0.2)  # while it is fetched, all the others wait for it
        await asyncio.gather(*(account.list_models() for _ in range(8)))
        upstream = await account.chat("x")
        assert upstream.headers == {"authorization": f"Bearer {azure.entra_token}"}
        async with account.content(await uploaded(account)) as reply:
            assert b"".join([chunk async for chunk in reply.chunks()]) == ROWS

    run(ask())
    assert azure.tokens_issued == [ENTRA_SCOPE]
    clock = time.monotonic
    for minutes, tokens in ((54, 1), (56, 2)):  # of the hour that a token lives
        monkeypatch.setattr(azure_arm.time, "monotonic", lambda minutes=minutes: clock() + minutes * 60)
        run(account.list_models())
        assert len(azure.tokens_issued) == tokens


def test_a_token_that_ends_soon_is_used_while_it_lasts(azure: AzureSimulator) -> None:
    account = vendor(azure, **by_entra(azure))
    short = {"access_token": azure.entra_token, "expires_in": "120"}
    azure.fault("token", "answer", status=200, body=json.dumps(short).encode())
    run(account.list_models())
    run(account.list_models())
    assert len(azure.asked("token")) == 1


def test_no_error_holds_a_secret(azure: AzureSimulator) -> None:
    """Neither what is configured, nor what an endpoint sends back of it."""
    told: list[TunewayError] = []
    azure.client_secret = "another"  # so that ours is wrong
    entra = by_entra(azure, azure_entra_client_secret="s3cret-client")
    echo = b'{"error": "s3cret-client", "error_description": "s3cret-client is wrong"}'

    def fails(account: AzureOpenAI) -> None:
        with pytest.raises((ProviderError, ProviderSilent)) as failed:
            run(account.list_models())
        told.append(failed.value)

    fails(vendor(azure, api_key="s3cret-key"))
    fails(vendor(azure, **entra))
    for status, body in ((400, echo), (500, b"s3cret-client"), (200, b'{"access_token": "a b"}'), (200, b"[]")):
        azure.fault("token", "answer", status=status, body=body)
        fails(vendor(azure, **entra))
    azure.fault("token", "cut_before")
    fails(vendor(azure, **entra))
    wrong = vendor(azure, **by_arm(azure, arm_token="s3cret-arm"))
    with pytest.raises(ProviderError) as refused:
        run(wrong.serve(tuned("m"), Heard()))
    told.append(refused.value)
    for name in KIND.secrets:
        more = by_entra(azure) if "entra" in name else {"api_key": None}
        if name.startswith("arm"):
            more = by_arm(azure, arm_token=None)
        with pytest.raises(InvalidRequest) as invalid:
            vendor(azure, **{**more, name: "s3cret-key s3cret-arm"})
        told.append(invalid.value)
    assert told[1].message == (
        "Microsoft Entra refused a token (invalid_client). Check <azure_entra_tenant_id>, <azure_entra_client_id> and "
        "<azure_entra_client_secret>."
    )
    assert told[1].status == 401
    assert [failure.sent for failure in told if isinstance(failure, ProviderSilent)] == [False] * 4
    for failure in told:
        seen = f"{failure} {failure.envelope()} {failure!r} {failure.__cause__!r}"
        assert not [secret for secret in SECRETS if secret in seen], seen


# ------------------------------------------------------------------------------------------------------- the create


@pytest.mark.parametrize(
    ("version", "asked", "sent"),
    [
        (OLD, {}, {}),
        (OLD, {"seed": 0, "suffix": "a-B_9"}, {"seed": 0, "suffix": "a-B_9"}),
        (OLD, {"validation_file": None, "integrations": [], "metadata": None, "method": {"type": "supervised"}}, {}),
        (OLD, numbers(n_epochs="auto", batch_size=4), numbers(batch_size=4)),
        (OLD, numbers(n_epochs=-1), numbers(n_epochs=-1)),
        (OLD, {"method": method("supervised", n_epochs=2, batch_size="auto")}, numbers(n_epochs=2)),
        (MODERN, {"method": DPO}, {"method": method("dpo", beta=0.2)}),
        (MODERN, {"method": method("dpo", beta="auto")}, {"method": {"type": "dpo"}}),
        ("v1", {"method": {**GRADED, "reinforcement": {"grader": {}, "hyperparameters": {}}}}, {"method": GRADED}),
        ("v1", EXTRAS, EXTRAS),
        ("v1", {"hyperparameters": {"n_epochs": "auto"}}, {}),
        (MODERN, {"trainingType": "developerTier"}, {"trainingType": "developerTier"}),
        ("preview", {"tuneway": {"options": {"training_type": "standard"}}}, {"trainingType": "standard"}),
        ("2026-01-01", {"trainingType": "a", "tuneway": {"options": {"training_type": "a"}}}, {"trainingType": "a"}),
    ],
)
def test_what_is_sent(version: str, asked: dict[str, Any], sent: dict[str, Any]) -> None:
    assert vendor(azure_api_version=version).translate({**JOB, **asked}) == {**JOB, **sent}


@pytest.mark.parametrize(
    ("version", "asked", "param"),
    [
        (OLD, {"method": DPO}, "method"),
        (OLD, {"method": {"type": "reinforcement", "reinforcement": {}}}, "method"),
        (OLD, {"method": {"type": "something"}}, "method"),
        (OLD, {"metadata": {"a": "b"}}, "metadata"),
        (OLD, {"integrations": [{"type": "wandb"}]}, "integrations"),
        ("2025-03-01-preview", {"trainingType": "standard"}, "trainingType"),
        (OLD, {"tuneway": {"options": {"training_type": "standard"}}}, "trainingType"),
    ],
)
def test_what_an_older_version_lacks_is_refused_with_the_version_that_has_it(
    version: str, asked: dict[str, Any], param: str
) -> None:
    with pytest.raises(
        InvalidRequest, match=f"api-version {version} .*'{MODERN}' does, and 'v1'.*<azure_api_version>"
    ) as refused:
        vendor(azure_api_version=version).translate({**JOB, **asked})
    assert refused.value.param == param


@pytest.mark.parametrize(
    ("version", "asked", "param"),
    [
        (OLD, {"hyperparameters": {"beta": 0.1}}, "hyperparameters.beta"),
        (OLD, {"method": {"type": "supervised", "dpo": {}}}, "method.dpo"),
        (OLD, {"method": {"type": "supervised", "supervised": {"x": 1}}}, "method.supervised.x"),
        (OLD, {"surprise": 1}, "surprise"),
        ("v1", {"suffix": "a" * 41}, "suffix"),
        ("v1", {"suffix": "ä"}, "suffix"),
        (OLD, {"suffix": ""}, "suffix"),
        ("v1", {"tuneway": {"learning_rate": 1e-4}}, "tuneway.learning_rate"),
        ("v1", {"tuneway": {"options": {"lora": True}}}, "tuneway.options.lora"),
        ("v1", {"trainingType": ["standard"]}, "trainingType"),
        ("v1", {"trainingType": "a", "tuneway": {"options": {"training_type": "b"}}}, "trainingType"),
    ],
)
def test_what_azure_cannot_take_is_refused_by_name(version: str, asked: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        vendor(azure_api_version=version).translate({**JOB, **asked})
    assert refused.value.param == param


def test_capabilities_are_those_of_the_version() -> None:
    old, new = vendor().capabilities, vendor(azure_api_version="v1").capabilities
    assert (old.methods, old.seed, old.metadata, old.pause) == (frozenset({Method.SUPERVISED}), True, False, False)
    assert (new.methods, new.metadata, new.integrations) == (frozenset(Method), True, True)
    assert "o4-mini-2025-04-16" not in [base.name for base in vendor().base_models()]
    assert vendor().wants_bom
    assert not vendor().serves_at_once


@pytest.mark.parametrize("version", [OLD, MODERN, "v1", "preview"])
def test_a_job_from_its_file_to_its_results(azure: AzureSimulator, version: str) -> None:
    account = vendor(azure, azure_api_version=version)

    async def live() -> None:
        file = await uploaded(account)
        asked = {"model": BASE, "training_file": file, "suffix": "Tickets", "seed": 7}
        made = await account.create_job(asked)
        assert made["status"] == "queued"
        assert made["tuneway"] == {"provider_status": "pending"}
        assert made["hyperparameters"] == dict.fromkeys(("n_epochs", "batch_size", "learning_rate_multiplier"), "auto")
        assert same_job(asked, made, since=time.time() - 60)
        assert not same_job({**asked, "suffix": "Other"}, made, since=time.time() - 60)
        azure.add_event(made["id"], "Mind this.", "warn")
        azure.finish_job(made["id"])
        done = await account.job(made["id"])
        assert done["status"] == "succeeded"
        assert isinstance(done["hyperparameters"]["n_epochs"], int)
        found = await account.result_csv(done)
        assert found is not None
        assert found.startswith(b"step,train_loss")
        levels = {event["level"] for event in (await account.events(made["id"], {"limit": "300"}))["data"]}
        assert levels == {"info", "warn"}
        checkpoints = (await account.checkpoints(made["id"], {}))["data"]
        assert [each["step_number"] for each in checkpoints] == sorted(
            (c["step_number"] for c in checkpoints), reverse=True
        )
        assert isinstance(checkpoints[0]["metrics"]["train_loss"], float)
        await account.delete_job(made["id"])
        with pytest.raises(ProviderError) as gone:
            await account.job(made["id"])
        assert (gone.value.status, gone.value.code) == (404, "notFound")

    run(live())
    assert azure.leaks == []
    assert len(azure.created) == 1


def test_dpo_trains_as_dpo_or_not_at_all(azure: AzureSimulator) -> None:
    rows = (json.dumps(DPO_ROW) + "\n").encode() * 12

    async def create(version: str) -> dict[str, Any]:
        account = vendor(azure, azure_api_version=version)
        return await account.create_job(
            {"model": "gpt-4o-2024-08-06", "training_file": await uploaded(account, rows), "method": DPO}
        )

    with pytest.raises(InvalidRequest, match=r"'dpo' as 'method\.type'"):
        run(create(OLD))
    assert azure.created == []
    made = run(create(MODERN))
    assert made["method"]["type"] == "dpo"
    assert json.loads(azure.asked("create_job")[0].body)["method"]["dpo"] == {"hyperparameters": {"beta": 0.2}}


# ------------------------------------------------------------------------------------------------------- the answers


JOB_WORDS = """{
    "created": "queued", "pending": "queued", "notRunning": "queued", "queued": "queued",
    "validating": "validating_files", "validating_files": "validating_files",
    "running": "running", "canceling": "running", "cancelling": "running",
    "pausing": "paused", "paused": "paused", "resuming": "paused",
    "succeeded": "succeeded", "failed": "failed", "canceled": "cancelled", "cancelled": "cancelled"
}"""
FILE_WORDS = """{
    "notRunning": "uploaded", "uploaded": "uploaded", "pending": "uploaded", "running": "uploaded", "other": "uploaded",
    "processed": "processed", "succeeded": "processed",
    "error": "error", "failed": "error", "canceled": "error", "deleting": "error", "deleted": "error"
}"""


@pytest.mark.parametrize(("word", "shown"), json.loads(JOB_WORDS).items())
def test_a_job_s_word_is_read(word: str, shown: str) -> None:
    job = vendor().shown_job({"id": "ftjob-1", "status": word})
    assert job["status"] == shown
    assert job["tuneway"] == {"provider_status": word}


def test_every_word_of_the_tables_is_tested() -> None:
    assert json.loads(JOB_WORDS) == STATUSES
    assert FILE_STATUSES.items() < json.loads(FILE_WORDS).items()


@pytest.mark.parametrize(("word", "shown"), json.loads(FILE_WORDS).items())
def test_a_file_s_word_is_read(word: str, shown: str) -> None:
    file = vendor().shown_file({"id": "file-1", "status": word})
    assert file["status"] == shown
    assert file.get("tuneway", {}).get("provider_status", shown) == word


@pytest.mark.parametrize("raw", ['{"id": "ftjob-1", "status": "evaluating"}', '{"id": "ftjob-1"}'])
def test_a_word_that_is_not_known_shows_as_running_and_says_so(raw: str) -> None:
    job = vendor().shown_job(json.loads(raw))
    assert job["status"] == "running"
    assert job["tuneway"]["unknown_status"] == str(json.loads(raw).get("status"))


def test_minus_one_is_auto_among_hyperparameters_only() -> None:
    raw = {
        "id": "ftjob-1",
        "status": "running",
        "seed": -1,
        "hyperparameters": {"n_epochs": -1, "batch_size": 4, "learning_rate_multiplier": -1.0},
        "method": {
            "type": "reinforcement",
            "reinforcement": {"grader": {"x": -1}, "hyperparameters": {"n_epochs": -1}},
        },
        "result_files": None,
        "error": {},
    }
    job = vendor().shown_job(raw)
    assert job["hyperparameters"] == {"n_epochs": "auto", "batch_size": 4, "learning_rate_multiplier": "auto"}
    assert job["method"]["reinforcement"] == {"grader": {"x": -1}, "hyperparameters": {"n_epochs": "auto"}}
    assert (job["seed"], job["result_files"], job["error"]) == (-1, [], None)


def test_files_are_listed_by_the_page_though_azure_has_no_pages(azure: AzureSimulator) -> None:
    account = vendor(azure)

    async def names(query: Mapping[str, str]) -> tuple[list[str], bool]:
        found = await account.list_files(query)
        return [file["filename"] for file in found["data"]], found["has_more"]

    async def look() -> None:
        for place in range(4):
            file = await account.upload(f"{place}.jsonl", "fine-tune", pieces(ROWS), len(ROWS))
            azure.files[file["id"]].wire["created_at"] = 1_700_000_000 + place
        await account.upload("a.txt", "assistants", pieces(b"x"), 1)
        assert await names({"purpose": "fine-tune", "limit": "3"}) == (["3.jsonl", "2.jsonl", "1.jsonl"], True)
        oldest = await account.list_files({"purpose": "fine-tune", "order": "asc", "limit": "2"})
        assert [file["filename"] for file in oldest["data"]] == ["0.jsonl", "1.jsonl"]
        after = {"purpose": "fine-tune", "order": "asc", "after": oldest["last_id"]}
        assert await names(after) == (["2.jsonl", "3.jsonl"], False)
        assert await names({"purpose": "assistants"}) == (["a.txt"], False)
        assert len((await account.list_files({}))["data"]) == 5

    run(look())
    assert {seen.query.get("limit") for seen in azure.asked("files")} == {None}


def test_a_list_with_pages_is_read_to_its_end(azure: AzureSimulator) -> None:
    first = {"data": [{"id": "file-2", "created_at": 2, "purpose": "fine-tune"}], "has_more": True}
    second = {"data": [{"id": "file-1", "created_at": 1, "purpose": "fine-tune"}], "has_more": True}
    for answer in (first, second, second):  # the last repeats what is known, for ever
        azure.fault("files", "answer", status=200, body=json.dumps(answer).encode())
    found = run(vendor(azure, azure_api_version="v1").list_files({}))
    assert [file["id"] for file in found["data"]] == ["file-2", "file-1"]
    assert [seen.query.get("after") for seen in azure.asked("files")] == [None, "file-2", "file-1"]


def test_jobs_and_events_go_by_cursors(azure: AzureSimulator) -> None:
    account = vendor(azure)

    async def look() -> None:
        file = await uploaded(account)
        made = [(await account.create_job({"model": BASE, "training_file": file}))["id"] for _ in range(3)]
        first = await account.list_jobs({"limit": "2"})
        assert ([job["id"] for job in first["data"]], first["has_more"]) == (made[:0:-1], True)
        rest = await account.list_jobs({"limit": "2", "after": made[1]})
        assert ([job["id"] for job in rest["data"]], rest["has_more"]) == (made[:1], False)
        with pytest.raises(InvalidRequest) as refused:
            await account.list_jobs({"metadata[a]": "b"})
        assert refused.value.param == "metadata[a]"
        azure.finish_job(made[0])
        whole = [event["id"] for event in (await account.events(made[0], {"limit": "100"}))["data"]]
        assert (await account.events(made[0], {"limit": "2", "after": whole[1]}))["data"][0]["id"] == whole[2]

    run(look())


def test_events_that_come_oldest_first_are_turned(azure: AzureSimulator) -> None:
    events = [
        {"id": f"e{at}", "created_at": at, "level": "info", "message": "m", "type": "message"} for at in (1, 2, 3)
    ]
    body = json.dumps({"object": "list", "data": events, "has_more": False}).encode()
    azure.fault("events", "answer", status=200, body=body, times=4)
    account = vendor(azure)
    assert [event["id"] for event in run(account.events("ftjob-1", {"limit": "2"}))["data"]] == ["e3", "e2"]
    assert [event["id"] for event in run(account.events("ftjob-1", {"after": "e2"}))["data"]] == ["e1"]


def test_models_are_shown_in_openai_s_form_too(azure: AzureSimulator) -> None:
    async def look() -> None:
        account = vendor(azure)
        model = await account.model(BASE)
        assert model["object"] == "model"
        assert isinstance(model["created"], int)
        assert model["owned_by"]
        assert model["capabilities"]["fine_tune"]
        assert all("created" in each for each in (await account.list_models())["data"])
        with pytest.raises(UnsupportedOperation, match=OLD):
            await account.delete_model(BASE)
        done = await trained(azure, account)
        await vendor(azure, azure_api_version="v1").delete_model(done["fine_tuned_model"])

    run(look())


def test_pause_and_resume_say_what_azure_is_doing(azure: AzureSimulator) -> None:
    account = vendor(azure, azure_api_version="v1")
    with pytest.raises(InvalidRequest, match="does not take 'pause'"):
        run(vendor(azure).change_job("ftjob-1", "pause"))

    async def live() -> None:
        azure.stop_at = "running"
        made = await account.create_job({"model": BASE, "training_file": await uploaded(account)})
        assert (await account.job(made["id"]))["status"] == "running"
        await account.change_job(made["id"], "pause")
        azure.set_status(made["id"], "pausing")
        with pytest.raises(ProviderError) as early:
            await account.change_job(made["id"], "resume")
        assert (early.value.status, early.value.without_effect) == (409, False)
        azure.set_status(made["id"], None)
        while (await account.job(made["id"]))["tuneway"]["provider_status"] != "paused":
            pass
        await account.change_job(made["id"], "resume")
        azure.set_status(made["id"], "resuming")
        await account.change_job(made["id"], "resume")
        azure.set_status(made["id"], None)
        cancelled = await account.change_job(made["id"], "cancel")
        assert cancelled["status"] == "cancelled"

    run(live())
    assert len(azure.asked("resume_job")) == 1
    assert len(azure.asked("pause_job")) == 1


def test_azure_s_errors_keep_their_words(azure: AzureSimulator) -> None:
    with pytest.raises(ProviderError) as refused:
        run(vendor(azure, api_key="wrong").list_jobs({}))
    assert (refused.value.status, refused.value.code) == (401, "401")
    assert refused.value.message.startswith("Access denied due to invalid subscription key")
    assert refused.value.request_id


# ------------------------------------------------------------------------------------------------------- deployments


@pytest.mark.parametrize(
    ("version", "options", "path", "model"),
    [
        (OLD, {}, "/openai/deployments/a%2Fb%3Fc%23:d/chat/completions?api-version=2024-10-21", None),
        (
            OLD,
            {"azure_deployment_id": "dep.1"},
            "/openai/deployments/dep.1/chat/completions?api-version=2024-10-21",
            None,
        ),
        ("v1", {}, "/openai/v1/chat/completions", None),
        ("v1", {"azure_deployment_id": "dep.1", "azure_model_name": "gpt-4o"}, "/openai/v1/chat/completions", "dep.1"),
        ("preview", {}, "/openai/v1/chat/completions?api-version=preview", None),
    ],
)
def test_chat_goes_to_a_deployment(version: str, options: dict[str, str], path: str, model: str | None) -> None:
    upstream = run(vendor(azure_api_version=version, **options).chat("a/b?c#:d"))
    assert upstream.url == f"https://acme.openai.azure.com{path}"
    assert upstream.headers == {"api-key": "k"}
    assert upstream.model == model


@pytest.mark.parametrize("name", ["..", ".", ""])
def test_a_model_s_name_cannot_leave_its_segment(name: str) -> None:
    with pytest.raises(InvalidRequest):
        run(vendor().chat(name))


@pytest.mark.parametrize("version", [OLD, "v1"])
def test_a_tuned_model_is_deployed_asked_and_withdrawn(azure: AzureSimulator, version: str) -> None:
    account = vendor(azure, **by_arm(azure, azure_api_version=version, deployment_capacity="50"))
    heard = Heard()

    async def live() -> None:
        done = await trained(azure, account)
        model = tuned(done["fine_tuned_model"])
        deployment = await account.serve(model, heard)
        assert deployment is not None
        assert deployment.name == azure_arm.deployment_name(model.id) == azure.deployed[0]
        assert len(deployment.name) <= 64
        assert (deployment.sku, deployment.usd_per_hour, deployment.expires_at) == ("standard", 1.70, None)
        upstream = await account.chat(deployment.name)
        body = {**HI, "model": deployment.name}
        answer = await account.line.json("POST", upstream.url, headers=upstream.headers, body=body)
        assert answer["choices"][0]["message"]["content"].startswith("tuned:")
        await account.withdraw(replace(model, deployment=deployment))
        assert azure.deployments == {}
        await account.withdraw(replace(model, deployment=deployment))
        assert done["fine_tuned_model"] in azure.models, "the model itself stays"

    run(live())
    put = json.loads(azure.asked("deploy")[0].body)
    assert put["sku"] == {"name": "standard", "capacity": 50}
    assert "$1.70 an hour" in heard.said[0]
    assert [said.rpartition(": ")[2] for said in heard.said[1:]] == ["Accepted", "Creating", "Succeeded"]


def test_a_crash_in_the_middle_finds_the_deployment_again(azure: AzureSimulator) -> None:
    account = vendor(azure, **by_arm(azure))
    model = tuned(run(trained(azure, account))["fine_tuned_model"])
    azure.fault("deploy", "cut_after")
    with pytest.raises(ProviderSilent):
        run(account.serve(model, Heard()))
    azure.fault("chat", "error_before", status=503)
    with pytest.raises(ProviderError):
        run(vendor(azure, **by_arm(azure)).serve(model, Heard()))
    deployment = run(vendor(azure, **by_arm(azure)).serve(model, Heard()))
    assert deployment is not None
    assert azure.deployed == [deployment.name]
    assert len(azure.asked("deploy")) == 1, "none after the crash, and none by the HTTP client itself"
    run(account.withdraw(model))
    assert azure.deployments == {}, "one that was never recorded is ended as well"


def test_a_developer_deployment_is_free_and_says_when_it_ends(azure: AzureSimulator) -> None:
    account = vendor(azure, **by_arm(azure, deployment_sku="developertier"))
    heard = Heard()
    deployment = run(account.serve(tuned(run(trained(azure, account))["fine_tuned_model"]), heard))
    assert deployment is not None
    assert (deployment.sku, deployment.usd_per_hour) == ("developertier", 0.0)
    assert deployment.expires_at == deployment.created_at + 24 * 3600
    assert "ends after 24 hours" in heard.said[0]


def test_a_deployment_is_as_old_as_azure_says(azure: AzureSimulator) -> None:
    account = vendor(azure, **by_arm(azure, deployment_sku="developertier"))
    model = tuned(run(trained(azure, account))["fine_tuned_model"])
    run(account.serve(model, Heard()))
    wire = next(iter(azure.deployments.values()))
    wire["systemData"] = {"createdAt": "2026-11-24T10:00:00.1234567Z"}
    again = run(account.serve(model, Heard()))
    assert again is not None
    assert again.created_at == 1795514400
    assert again.expires_at == 1795514400 + 24 * 3600


@pytest.mark.parametrize("state", ["Failed", "Canceled"])
def test_a_deployment_that_fails_ends_the_job_and_keeps_the_model(azure: AzureSimulator, state: str) -> None:
    account = vendor(azure, **by_arm(azure))
    model = tuned(run(trained(azure, account))["fine_tuned_model"])
    properties = {
        "model": {"format": "OpenAI", "name": model.upstream_model, "version": "1"},
        "provisioningState": state,
    }
    azure.deployments[azure_arm.deployment_name(model.id)] = {
        "properties": properties,
        "error": {"message": "No quota."},
    }
    with pytest.raises(JobFailure, match=r"Training has succeeded.*No quota.*by hand") as failed:
        run(account.serve(model, Heard()))
    assert model.upstream_model in failed.value.message
    assert azure.asked("deploy") == []


def test_a_deployment_of_another_model_is_left_alone(azure: AzureSimulator) -> None:
    account = vendor(azure, **by_arm(azure))
    model = tuned("gpt-4o-mini.ft-1")
    properties = {"model": {"name": "gpt-4o-mini.ft-2"}, "provisioningState": "Succeeded"}
    azure.deployments[azure_arm.deployment_name(model.id)] = {"properties": properties}
    with pytest.raises(JobFailure, match=r"of the model gpt-4o-mini\.ft-2"):
        run(account.serve(model, Heard()))


def test_a_new_deployment_may_be_unknown_for_a_while(azure: AzureSimulator) -> None:
    account = vendor(azure, **by_arm(azure))
    model = tuned(run(trained(azure, account))["fine_tuned_model"])
    unknown = b'{"error": {"code": "DeploymentNotFound", "message": "The API deployment does not exist."}}'
    azure.fault("chat", "answer", status=404, body=unknown)
    assert run(account.serve(model, Heard())) is not None
    assert len(azure.asked("chat")) == 2


def test_a_refusal_of_the_resource_manager_is_passed_on(azure: AzureSimulator) -> None:
    account = vendor(azure, **by_arm(azure, account="other"))
    with pytest.raises(ProviderError, match="was not found") as refused:
        run(account.serve(tuned("m"), Heard()))
    assert (refused.value.status, refused.value.code) == (404, "ResourceNotFound")


def test_the_resource_manager_has_its_own_token(azure: AzureSimulator) -> None:
    shared = vendor(azure, **by_entra(azure), **by_arm(azure, arm_token=None))
    model = tuned(run(trained(azure, shared))["fine_tuned_model"])
    run(shared.serve(model, Heard()))
    assert sorted(azure.tokens_issued) == sorted([ENTRA_SCOPE, ARM_SCOPE])
    own = {"arm_client_id": azure.client_id, "arm_client_secret": azure.client_secret, "arm_tenant_id": azure.tenant}
    account = vendor(azure, **by_arm(azure, arm_token=None, login_url=azure.login_url, **own))
    run(account.withdraw(model))
    assert azure.deployments == {}
    assert azure.tokens_issued[2:] == [ARM_SCOPE]
    assert {seen.headers.get("api-key") for seen in azure.asked("delete_deployment")} == {None}


@pytest.mark.parametrize("told", [False, True])
def test_without_leave_to_deploy_the_job_says_what_to_do(azure: AzureSimulator, told: bool) -> None:
    account = vendor(azure, **(by_arm(azure, deploy="no") if told else {}))
    heard = Heard()
    model = tuned("gpt-4o-mini.ft-1")
    assert run(account.serve(model, heard)) is None
    assert len(heard.said) == 1
    assert "gpt-4o-mini.ft-1" in heard.said[0]
    assert "`subscription`" in heard.said[0]
    run(account.withdraw(model))
    assert azure.requests == []


def test_a_deployment_that_nobody_can_end_any_more_is_named(azure: AzureSimulator) -> None:
    model = tuned("m", deployment=Deployment("tuneway-x", 1))
    with pytest.raises(InvalidRequest, match="tuneway-x may still stand at Azure, and be billed"):
        run(vendor(azure).withdraw(model))
    run(vendor(azure, **by_arm(azure, deploy="no")).withdraw(model))
    assert [seen.path.rpartition("/")[2] for seen in azure.asked("delete_deployment")] == ["tuneway-x"]


def test_what_was_never_deployed_is_not_asked_for(azure: AzureSimulator) -> None:
    account = vendor(azure, **by_arm(azure))
    run(account.withdraw(tuned("m", id="ft:m:p::Ab12Cd34:ckpt-step-20")))
    run(account.withdraw(tuned("m", imported=True)))
    assert azure.requests == []


def test_deployments_names_are_all_different() -> None:
    ids = ["ft:a-b:p::Ab12Cd34", "ft:ab:p::Ab12Cd34", "ft:a-b:p::ab12cd34", "ft:" + "x" * 200 + ":p:ä:Ab12Cd34"]
    names = {azure_arm.deployment_name(each) for each in ids}
    assert len(names) == len(ids)
    assert all(len(name) <= 64 and name.isascii() and name == name.lower() for name in names)

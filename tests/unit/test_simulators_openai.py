"""The vendors of OpenAI's shape that the other tests rely on, asked by the official SDK."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from io import BytesIO
from typing import Any

import httpx2
import openai
import pytest

from tests.simulators.azure import ARM_SCOPE, ENTRA_SCOPE, AzureSimulator
from tests.simulators.base import Simulator
from tests.simulators.mantle import MantleSimulator
from tests.simulators.nebius import NebiusSimulator
from tests.simulators.openai import OpenAISimulator
from tests.simulators.sdk import CHAT, HI, ROWS, azure_client, connect, create, poll, processed, streamed, upload

DPO: Any = {"input": {"messages": CHAT["messages"][:1]}, "preferred_output": [], "non_preferred_output": []}
SIMULATORS = [OpenAISimulator, NebiusSimulator, MantleSimulator, AzureSimulator]


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def sim(stack: ExitStack) -> OpenAISimulator:
    return stack.enter_context(OpenAISimulator())


@pytest.fixture
def client(sim: OpenAISimulator, stack: ExitStack) -> openai.OpenAI:
    return connect(sim, stack)


@pytest.fixture
def http(stack: ExitStack) -> httpx2.Client:
    return stack.enter_context(httpx2.Client(trust_env=False, timeout=10))


def test_the_life_of_a_job(sim: OpenAISimulator, client: openai.OpenAI) -> None:
    jobs: Any = client.fine_tuning.jobs
    made = create(client, suffix="mine", metadata={"a": "b"}, seed=7, validation_file=upload(client))
    assert (made.status, made.model, made.seed) == ("validating_files", "gpt-4o-mini-2024-07-18", 7)
    assert made.hyperparameters.n_epochs == "auto"
    assert made.to_dict()["error"] == {}
    assert made.to_dict()["shared_with_openai"] is False
    assert poll(client, made.id, 2) == ["queued", "running"]
    assert jobs.retrieve(made.id).fine_tuned_model is not None
    done = jobs.retrieve(made.id)
    assert done.status == "succeeded"
    assert done.fine_tuned_model.startswith("ft:gpt-4o-mini-2024-07-18:acme:mine:")
    assert (done.hyperparameters.n_epochs, done.hyperparameters.batch_size) == (8, 1)
    assert done.method.to_dict()["supervised"]["hyperparameters"]["learning_rate_multiplier"] == 1.8
    assert done.trained_tokens == len(ROWS) // 4 * 8
    assert sim.created == [made.id]

    events = list(jobs.list_events(made.id))  # several pages, the newest first
    assert [event.message for event in events[-4:]] == [
        "Fine-tuning job started",
        "Files validated, moving job to queued state",
        f"Validating training file: {made.training_file} and validation file: {made.validation_file}",
        f"Created fine-tuning job: {made.id}",
    ]
    assert events[0].message == "The job has successfully completed"
    assert sum(event.type == "metrics" for event in events) == 96
    assert events[-5].data["valid_loss"] == 2.5

    checkpoints = list(jobs.checkpoints.list(made.id, limit=2))
    assert [kept.step_number for kept in checkpoints] == [96, 84, 72]
    assert checkpoints[0].fine_tuned_model_checkpoint == done.fine_tuned_model
    assert checkpoints[1].fine_tuned_model_checkpoint.endswith(":ckpt-step-84")
    assert done.fine_tuned_model in [model.id for model in client.models.list()]

    result = client.files.content(done.result_files[0]).content
    assert result.startswith(b"step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy\n1,2.0,")
    sim.base64_results = True
    assert base64.b64decode(client.files.content(done.result_files[0]).content) == result


def test_jobs_are_listed_the_newest_first_and_found_by_metadata(sim: OpenAISimulator, client: openai.OpenAI) -> None:
    made = [create(client, metadata={"key": str(at)} if at else None).id for at in range(3)]
    assert [job.id for job in client.fine_tuning.jobs.list(limit=1)] == made[::-1]
    assert [job.id for job in client.fine_tuning.jobs.list(metadata={"key": "1"})] == [made[1]]
    assert [job.id for job in client.fine_tuning.jobs.list(extra_query={"metadata": "null"})] == [made[0]]
    with pytest.raises(openai.BadRequestError):
        client.fine_tuning.jobs.list(after="ftjob-none")


def test_a_job_is_where_it_is_put(sim: OpenAISimulator, client: openai.OpenAI) -> None:
    jobs: Any = client.fine_tuning.jobs
    job = create(client).id
    assert jobs.cancel(job).to_dict()["finished_at"] is None
    with pytest.raises(openai.BadRequestError, match="Job has already completed"):
        jobs.cancel(job)

    sim.stop_at = "running"
    job = create(client).id
    with pytest.raises(openai.BadRequestError):
        jobs.pause(job)
    assert poll(client, job, 4) == ["queued", "running", "running", "running"]
    assert jobs.pause(job).status == "paused"
    assert poll(client, job, 1) == ["paused"]
    assert jobs.resume(job).status == "queued"
    sim.set_status(job, "brooding")
    assert [*poll(client, job, 2), sim.jobs[job]["status"]] == ["brooding"] * 3
    sim.set_status(job, None)
    sim.stop_at = None
    assert poll(client, job, 2) == ["running", "succeeded"]

    job = create(client).id
    sim.fail_job(job, "exceeded_quota", "No.")
    assert jobs.retrieve(job).to_dict()["error"] == {"code": "exceeded_quota", "message": "No.", "param": None}
    job = create(client).id
    sim.finish_job(job)
    assert poll(client, job, 1) == ["succeeded"]


def test_a_job_looks_at_its_file(client: openai.OpenAI) -> None:
    for content, method, code in (
        (ROWS[: len(ROWS) // 2], "supervised", "invalid_n_examples"),
        (ROWS + b"{\n", "supervised", "invalid_file_format"),
        (ROWS, "dpo", "invalid_file_format"),
        ((json.dumps(DPO) + "\n").encode() * 10, "dpo", None),
    ):
        job = create(client, training_file=upload(client, content), method={"type": method})
        shown: Any = client.fine_tuning.jobs.retrieve(job.id).to_dict()
        assert (shown["status"], shown["error"].get("code")) == ("failed" if code else "queued", code)
        assert (shown["hyperparameters"] is None) == (method == "dpo")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"colour": "red"}, "Unrecognized request argument supplied: colour"),
        ({"tuneway": {}}, "Unrecognized request argument supplied: tuneway"),
        ({"suffix": "x" * 65}, "maximum length 64"),
        ({"seed": -1}, "expected a value >= 0"),
        ({"seed": True}, "expected an integer, but got a boolean"),
        ({"metadata": {str(at): "" for at in range(17)}}, "at most 16"),
        ({"hyperparameters": {"n_epochs": 51}}, "expected a value <= 50"),
        ({"method": {"type": "sft"}}, "Supported values are: 'supervised', 'dpo', 'reinforcement'"),
        ({"method": {"type": "dpo", "dpo": {"hyperparameters": {"beta": 3}}}}, "method.dpo.hyperparameters.beta"),
        ({"method": {"type": "reinforcement"}}, "Missing required parameter: 'method.reinforcement'"),
        ({"training_file": "file-none"}, "invalid training_file: file-none"),
        ({"model": "gpt-5"}, "Model gpt-5 is not available for fine-tuning or does not exist."),
        ({"model": None}, "Invalid type for 'model': expected a string, but got null instead."),
    ],
)
def test_a_wrong_job_is_refused(sim: OpenAISimulator, client: openai.OpenAI, body: Any, message: str) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        create(client, extra_body=body)
    assert message in raised.value.message
    assert sim.created == []


def test_files_and_uploads(sim: OpenAISimulator, client: openai.OpenAI) -> None:
    first, second = upload(client), upload(client, name="你好.jsonl")
    assert client.files.retrieve(second).filename == "你好.jsonl"
    assert [file.id for file in client.files.list(limit=1)] == [second, first]
    assert client.files.content(first).content == ROWS
    assert client.files.delete(first).deleted
    with pytest.raises(openai.NotFoundError, match="No such File object"):
        client.files.retrieve(first)
    with pytest.raises(openai.BadRequestError, match=r"Must be \.jsonl"):
        upload(client, name="upload")
    with pytest.raises(openai.BadRequestError, match="is not one of"):
        client.files.create(file=("a.jsonl", ROWS), purpose="world_domination")  # type: ignore[arg-type]

    made = client.uploads.upload_file_chunked(
        file=ROWS, filename="a.jsonl", bytes=len(ROWS), mime_type="text/jsonl", purpose="fine-tune", part_size=100
    )
    assert made.file is not None
    assert client.files.content(made.file.id).content == ROWS

    large = (b"x" * 1023 + b"\n") * 9 * 1024
    name = client.files.create(file=("large.jsonl", BytesIO(large)), purpose="fine-tune").id
    assert (sim.files[name].content, sim.files[name].rows, sim.files[name].wire["bytes"]) == (None, 9216, len(large))
    assert (sim.requests[-1].body, sim.requests[-1].length > len(large)) == (b"", True)


def test_chat_is_right_and_looks_odd(sim: OpenAISimulator, client: openai.OpenAI, http: httpx2.Client) -> None:
    job = create(client).id
    poll(client, job, 2)
    with pytest.raises(openai.NotFoundError, match="does not exist or you do not have access to it"):
        client.chat.completions.create(model="ft:gpt-4o-mini-2024-07-18:acme::12345678", messages=HI)
    poll(client, job, 1)
    model = client.fine_tuning.jobs.retrieve(job).fine_tuned_model
    assert model is not None
    answer = client.chat.completions.create(model=model, messages=HI)
    assert (answer.choices[0].message.content, answer.model) == ("tuned:grüß ☂", model)
    assert client.chat.completions.create(model="gpt-4o", messages=HI).choices[0].message.content == "base:grüß ☂"
    assert streamed(client, model) == "tuned:grüß ☂"

    body = {"model": model, "messages": HI, "stream": True}
    headers = {"authorization": f"Bearer {sim.key}"}
    with http.stream("POST", f"{sim.base_url}/chat/completions", json=body, headers=headers) as response:
        raw = b"".join(response.iter_raw())
    assert raw == sim.chat_bytes
    wrong: Any
    for wrong in ({"temperature": 3}, {"colour": "red"}, {"stream_options": {}}, {"messages": [{"role": "me"}]}):
        with pytest.raises(openai.BadRequestError):
            client.chat.completions.create(model="gpt-4o", messages=HI, extra_body=wrong)
    client.models.delete(model)
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve(model)


def test_permissions_and_graders(sim: OpenAISimulator, client: openai.OpenAI) -> None:
    job = create(client).id
    sim.finish_job(job)
    checkpoint = sim.jobs[job].checkpoints[0]["fine_tuned_model_checkpoint"]
    permissions = client.fine_tuning.checkpoints.permissions
    assert [made.project_id for made in permissions.create(checkpoint, project_ids=["a", "b"])] == ["a", "b"]
    [kept] = list(permissions.list(checkpoint, project_id="b"))
    assert permissions.delete(kept.id, fine_tuned_model_checkpoint=checkpoint).deleted
    grader: Any = {"type": "string_check", "name": "g", "input": "a", "reference": "a", "operation": "eq"}
    assert client.fine_tuning.alpha.graders.run(grader=grader, model_sample="a").reward == 1.0
    assert client.fine_tuning.alpha.graders.validate(grader=grader).grader is not None
    with pytest.raises(openai.BadRequestError, match="Supported values"):
        client.fine_tuning.alpha.graders.validate(grader=grader | {"operation": "is"})
    assert list(client.chat.completions.list()) == []


def test_keys_are_checked_and_leaks_seen(sim: OpenAISimulator, stack: ExitStack, client: openai.OpenAI) -> None:
    with pytest.raises(openai.AuthenticationError) as raised:
        connect(sim, stack, "sk-wrong").models.list()
    assert raised.value.code == "invalid_api_key"
    assert raised.value.response.headers["x-request-id"].startswith("req_")
    assert raised.value.response.headers["openai-organization"] == "acme"
    assert sim.leaks == []
    with pytest.raises(openai.BadRequestError):
        client.models.list(extra_headers={"x-portkey-provider": "openai"})
    with pytest.raises(openai.BadRequestError):
        connect(sim, stack, "tnw_abc").models.list()
    assert sim.leaks == ["header x-portkey-provider", "header authorization"]
    with pytest.raises(openai.NotFoundError, match=r"Invalid URL \(GET /v1/nothing\)"):
        client.get("/nothing", cast_to=object)


# Faults.


@pytest.mark.parametrize(("when", "effects"), [("before", 0), ("after", 1)])
def test_errors_and_cuts(sim: OpenAISimulator, client: openai.OpenAI, when: str, effects: int) -> None:
    file = upload(client)
    sim.fault("create_job", f"error_{when}", status=429, retry_after="7")
    with pytest.raises(openai.RateLimitError) as limited:
        create(client, training_file=file)
    assert limited.value.response.headers["retry-after"] == "7"
    assert len(sim.created) == effects
    sim.fault("create_job", f"cut_{when}", times=2)
    for _ in range(2):
        with pytest.raises(openai.APIConnectionError) as cut:
            create(client, training_file=file)
        assert isinstance(cut.value.__cause__, httpx2.RemoteProtocolError)
    assert len(sim.created) == 3 * effects
    create(client, training_file=file)
    assert len(sim.created) == len(sim.jobs) == 3 * effects + 1
    assert len(sim.asked("create_job")) == 4


@pytest.mark.parametrize(("what", "when"), [(what, when) for what in ("slow", "hold") for when in ("before", "after")])
def test_an_effect_does_not_need_its_client(sim: OpenAISimulator, client: openai.OpenAI, what: str, when: str) -> None:
    file = upload(client)
    sim.fault("create_job", f"{what}_{when}", seconds=0.3)
    with pytest.raises(openai.APITimeoutError):
        create(client.with_options(timeout=0.1), training_file=file)
    if what == "hold":
        sim.wait_held("create_job")
        assert len(sim.created) == (when == "after")
        sim.release("create_job")
    else:
        sim.stop()
    assert len(sim.created) == 1


def test_several_requests_are_held_and_go_on_together(sim: OpenAISimulator, client: openai.OpenAI) -> None:
    file, answers = upload(client), []
    sim.fault("create_job", "hold_after", times=3)
    threads = [threading.Thread(target=lambda: answers.append(create(client, training_file=file).id)) for _ in range(2)]
    for thread in threads:
        thread.start()
    sim.wait_held("create_job", count=2)
    assert (len(sim.created), answers) == (2, [])
    sim.release("create_job")
    for thread in threads:
        thread.join(10)
    assert sorted(answers) == sorted(sim.created)
    assert create(client, training_file=file).id == sim.created[-1]  # the third order was taken back


def test_wrong_answers_and_half_answers(sim: OpenAISimulator, client: openai.OpenAI) -> None:
    sim.fault("models", "answer", status=200, body=b'{"object": "li')
    with pytest.raises(json.JSONDecodeError):
        client.models.list()
    sim.fault("models", "answer", status=502, body=b"<html>Bad gateway</html>")
    with pytest.raises(openai.InternalServerError) as raised:
        client.models.list()
    assert raised.value.response.headers["content-type"].startswith("text/html")
    sim.fault("chat", "cut_during", times=2)
    with pytest.raises(openai.APIConnectionError):
        client.chat.completions.create(model="gpt-4o", messages=HI)
    with pytest.raises(openai.APIConnectionError):
        streamed(client, "gpt-4o")
    with pytest.raises(ValueError):
        sim.fault("create_jobs", "error_before")
    with pytest.raises(ValueError):
        sim.fault("create_job", "error")


@pytest.mark.parametrize("kind", SIMULATORS)
def test_a_simulator_ends_with_requests_held(kind: Callable[[], Simulator], http: httpx2.Client) -> None:
    before = threading.active_count()
    with kind() as sim:
        sim.fault("models", "hold_before")
        path = "/openai/v1/models" if kind is AzureSimulator else "/v1/models"
        asking = threading.Thread(target=http.get, args=[sim.url + path])
        asking.start()
        sim.wait_held("models")
    asking.join(10)
    assert threading.active_count() == before


def test_a_crash_of_a_handler_is_not_taken_for_an_answer(http: httpx2.Client) -> None:
    sim = OpenAISimulator().start()
    sim.models["broken"] = {}
    assert http.delete(f"{sim.base_url}/models/broken", headers={"authorization": f"Bearer {sim.key}"}).is_server_error
    with pytest.raises(KeyError):
        sim.stop()


# Other vendors.


def test_nebius(stack: ExitStack, http: httpx2.Client) -> None:
    sim = stack.enter_context(NebiusSimulator())
    client, base = connect(sim, stack), "meta-llama/Meta-Llama-3.1-8B-Instruct"
    bad: Any = [{"n_epochs": "auto"}, {"learning_rate_multiplier": 1.8}]
    for wrong in (*({"hyperparameters": chosen} for chosen in bad), {"metadata": {"a": "b"}}, {"method": {}}):
        with pytest.raises(openai.BadRequestError):
            create(client, model=base, extra_body=wrong)
    chosen: Any = {"n_epochs": 2, "learning_rate_multiplier": 2e-5, "lora": True, "lora_r": 16}
    job = create(client, model=base, hyperparameters=chosen)
    assert poll(client, job.id) == ["queued", "running", "succeeded"]
    done: Any = client.fine_tuning.jobs.retrieve(job.id).to_dict()
    assert (done["fine_tuned_model"], done["hyperparameters"]["lora_r"]) == (None, 16)
    newest: Any = client.fine_tuning.jobs.checkpoints.list(job.id).data[0]
    [adapter] = newest.to_dict()["result_files"]
    assert client.files.content(adapter).content.startswith(b"adapter")

    headers, v0 = {"authorization": f"Bearer {sim.key}"}, f"{sim.url}/v0/models"
    body = {"name": "mine", "base_model": base, "source": f"{job.id}:{newest.id}"}
    assert http.post(v0, json=body | {"source": f"{job.id}:none"}, headers=headers).status_code == 404
    made = http.post(v0, json=body, headers=headers).json()
    assert made["name"].startswith(f"{base}-LoRa:mine-")
    assert http.get(f"{v0}/mine", headers=headers).json()["status"] == "validating"
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model=made["name"], messages=HI)
    assert http.get(f"{v0}/{made['name']}", headers=headers).json()["status"] == "active"
    answer = client.chat.completions.create(model=made["name"], messages=HI)
    assert answer.choices[0].message.content == "tuned:grüß ☂"
    assert http.delete(f"{v0}/mine", headers=headers).json()["status"] == "deleted"


def test_mantle(stack: ExitStack) -> None:
    sim = stack.enter_context(MantleSimulator())
    client, model = connect(sim, stack), "openai.gpt-oss-20b"
    grader = {"type": "lambda", "lambda": {"function": "arn:aws:lambda:us-west-2:123456789012:function:f"}}
    method: Any = {"type": "reinforcement", "reinforcement": {"grader": grader, "hyperparameters": {"n_epochs": 1}}}
    for wrong in ({"method": {"type": "supervised"}}, {"suffix": "x"}, {"model": "gpt-4o"}):
        with pytest.raises(openai.BadRequestError):
            create(client, **{"model": model, "method": method, **wrong})
    with pytest.raises(openai.BadRequestError):
        create(client, model=model)
    job = create(client, model=model, method=method)
    assert poll(client, job.id) == ["queued", "running", "succeeded"]
    tuned = client.fine_tuning.jobs.retrieve(job.id).fine_tuned_model
    assert tuned is not None
    assert client.chat.completions.create(model=tuned, messages=HI).choices[0].message.content == "tuned:grüß ☂"


# Azure.


@pytest.fixture
def azure(stack: ExitStack) -> AzureSimulator:
    return stack.enter_context(AzureSimulator())


def test_azure_jobs(azure: AzureSimulator, stack: ExitStack) -> None:
    client = azure_client(azure, stack)
    jobs: Any = client.fine_tuning.jobs
    model = "gpt-4o-mini-2024-07-18"
    fresh = upload(client)
    with pytest.raises(openai.BadRequestError, match="must be processed first"):
        jobs.create(model=model, training_file=fresh)
    file = processed(client)
    raw = jobs.with_raw_response.create(model=model, training_file=file, suffix="mine", seed=3)
    made = raw.parse()
    assert (raw.status_code, made.status) == (201, "pending")
    assert raw.headers["location"] == f"{azure.url}/openai/fine_tuning/jobs/{made.id}"
    assert made.hyperparameters.n_epochs == -1
    assert poll(client, made.id, 2) == ["running", "succeeded"]
    done = jobs.retrieve(made.id)
    assert done.fine_tuned_model == f"{model}.ft-{made.id.removeprefix('ftjob-')}-mine"
    azure.add_event(made.id, "Mind this.", "warn")
    assert next(iter(jobs.list_events(made.id))).level == "warning"
    checkpoints = json.loads(jobs.checkpoints.with_raw_response.list(made.id).content)
    assert isinstance(checkpoints["data"][0]["metrics"]["train_loss"], str)
    assert "first_id" not in checkpoints
    assert client.models.retrieve(done.fine_tuned_model).to_dict()["fine_tune"] == made.id
    client.delete(f"/fine_tuning/jobs/{made.id}", cast_to=object)
    assert list(jobs.list()) == []

    recent = {"method": {"type": "supervised"}, "trainingType": "standard", "metadata": {"a": "b"}}
    bad: list[Any] = [{name: value} for name, value in recent.items()]
    for wrong in (*bad, {"hyperparameters": {"n_epochs": "auto"}}, {"suffix": "x" * 41}):
        with pytest.raises(openai.BadRequestError) as raised:
            jobs.create(model=model, training_file=file, extra_body=wrong)
        assert set(raised.value.response.json()["error"]) == {"code", "message"}
    newer: Any = azure_client(azure, stack, "2025-04-01-preview").fine_tuning.jobs
    other = newer.create(model=model, training_file=file, extra_body=recent)
    assert other.method is not None
    poll(client, other.id, 1)
    assert newer.pause(other.id).status == "pausing"
    assert poll(client, other.id, 1) == ["paused"]
    assert newer.resume(other.id).status == "resuming"
    assert poll(client, other.id, 1) == ["running"]
    assert [job.id for job in newer.list(metadata={"a": "other"})] == [other.id]  # the filter is not seen
    azure.require_bom = True
    with pytest.raises(openai.BadRequestError, match="BOM"):
        jobs.create(model=model, training_file=file)
    jobs.create(model=model, training_file=processed(client, b"\xef\xbb\xbf" + ROWS))


def test_azure_credentials_and_versions(azure: AzureSimulator, stack: ExitStack, http: httpx2.Client) -> None:
    azure_client(azure, stack).models.list()
    azure_client(azure, stack, azure_ad_token=azure.entra_token).models.list()
    connect(azure, stack, azure.entra_token).models.list()
    for wrong in ({"api_key": "none"}, {"azure_ad_token": azure.arm_token}):
        with pytest.raises(openai.AuthenticationError, match="Access denied due to invalid subscription key"):
            azure_client(azure, stack, **wrong).models.list()
    answer = http.get(f"{azure.url}/openai/models", headers={"api-key": azure.key})
    assert (answer.status_code, answer.json()) == (404, {"error": {"code": "404", "message": "Resource not found"}})
    with pytest.raises(openai.BadRequestError):
        connect(azure, stack, azure.entra_token).models.list(extra_query={"api-version": "2024-10-21"})

    url = f"{azure.login_url}/{azure.tenant}/oauth2/v2.0/token"
    form = {"grant_type": "client_credentials", "client_id": azure.client_id, "client_secret": azure.client_secret}
    assert http.post(url, data=form | {"scope": ENTRA_SCOPE}).json()["access_token"] == azure.entra_token
    assert http.post(url, data=form | {"scope": ARM_SCOPE}).json()["access_token"] == azure.arm_token
    refused = http.post(url, data=form | {"scope": ARM_SCOPE, "client_secret": "x"})
    assert (refused.status_code, refused.json()["error"]) == (401, "invalid_client")
    assert azure.tokens_issued == [ENTRA_SCOPE, ARM_SCOPE]


def test_azure_deployments(azure: AzureSimulator, stack: ExitStack, http: httpx2.Client) -> None:
    client = azure_client(azure, stack)
    job = client.fine_tuning.jobs.create(model="gpt-4o-mini-2024-07-18", training_file=processed(client))
    azure.finish_job(job.id)
    model = azure.job_of().wire["fine_tuned_model"]
    account = f"{azure.subscription}/resourceGroups/{azure.resource_group}/providers/Microsoft.CognitiveServices"
    root = f"{azure.arm_url}/subscriptions/{account}/accounts/{azure.account}/deployments"
    body = {
        "sku": {"name": "standard", "capacity": 1},
        "properties": {"model": {"format": "OpenAI", "name": model, "version": "1"}},
    }
    query, headers = {"api-version": "2024-10-01"}, {"authorization": f"Bearer {azure.arm_token}"}

    def put(name: str, body: Any, headers: dict[str, str] = headers) -> httpx2.Response:
        return http.put(f"{root}/{name}", json=body, params=query, headers=headers)

    assert put("mine", body, {"api-key": azure.key}).status_code == 401
    assert put("mine", body, {"authorization": f"Bearer {azure.entra_token}"}).status_code == 401
    assert put("mine", body | {"sku": {"name": "standard"}}).status_code == 400
    made = put("mine", body)
    assert (made.status_code, made.json()["properties"]["provisioningState"]) == (201, "Accepted")
    with pytest.raises(openai.NotFoundError) as raised:
        client.chat.completions.create(model="mine", messages=HI)
    assert raised.value.code == "DeploymentNotFound"
    found = [http.get(f"{root}/mine", params=query, headers=headers).json() for _ in range(2)]
    assert [wire["properties"]["provisioningState"] for wire in found] == ["Creating", "Succeeded"]
    assert put("mine", body).json()["properties"]["provisioningState"] == "Succeeded"
    assert put("other", body).status_code == 409
    assert azure.deployed == list(azure.deployments) == ["mine"]

    assert client.chat.completions.create(model="mine", messages=HI).choices[0].message.content == "tuned:grüß ☂"
    assert streamed(connect(azure, stack, azure.entra_token), "mine") == "tuned:grüß ☂"
    assert http.delete(f"{root}/mine", params=query, headers=headers).status_code == 200
    assert http.delete(f"{root}/mine", params=query, headers=headers).status_code == 204

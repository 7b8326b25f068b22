"""The vendors with shapes of their own that the other tests rely on: Together and Fireworks, asked over plain HTTP."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import httpx2
import pytest

from tests.simulators.base import Simulator
from tests.simulators.fireworks import FireworksSimulator
from tests.simulators.fireworks_serving import BASE
from tests.simulators.together import BASES, HARDWARE, SERVERLESS, TogetherSimulator

CHAT = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}
PAIR = {"input": {"messages": CHAT["messages"][:1]}, "preferred_output": [], "non_preferred_output": []}
ROWS, PAIRS = (json.dumps(row).encode() + b"\n" for row in (CHAT, PAIR))
HI = [{"role": "user", "content": "grüß"}]
QWEN, REFERENCE = BASES
Json = Any


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def together(stack: ExitStack) -> TogetherSimulator:
    return stack.enter_context(TogetherSimulator())


@pytest.fixture
def fireworks(stack: ExitStack) -> FireworksSimulator:
    return stack.enter_context(FireworksSimulator())


class Client:
    """Asks one simulator; `ask` expects a status and gives the body."""

    def __init__(self, sim: Simulator, stack: ExitStack) -> None:
        headers = {"authorization": f"Bearer {sim.key}"}
        self.http = stack.enter_context(httpx2.Client(base_url=sim.url, headers=headers, trust_env=False, timeout=10))

    def ask(self, method: str, path: str, status: int = 200, **more: Any) -> Json:
        answer = self.http.request(method, path, **more)
        assert answer.status_code == status, answer.text
        is_json = answer.headers.get("content-type", "").startswith("application/json")
        return answer.json() if is_json else answer.content

    def get(self, path: str, status: int = 200, **params: Any) -> Json:
        return self.ask("GET", path, status, params=params)

    def post(self, path: str, status: int = 200, /, **body: Any) -> Json:
        return self.ask("POST", path, status, json=body)

    def chat(self, path: str, model: str, status: int = 200) -> Json:
        found = self.post(path, status, model=model, messages=HI)
        return found if status != 200 else found["choices"][0]["message"]["content"]


# Together.


@pytest.fixture
def tg(together: TogetherSimulator, stack: ExitStack) -> Client:
    return Client(together, stack)


def send(tg: Client, content: bytes = ROWS * 12, status: int = 200, /, **form: str) -> Json:
    data = {"purpose": "fine-tune", "file_name": "train.jsonl", "file_type": "jsonl"} | form
    return tg.ask("POST", "/v1/files/upload", status, data=data, files={"file": ("x", content)})


def tune(tg: Client, status: int = 200, **more: Any) -> Json:
    return tg.post("/v1/fine-tunes", status, **{"model": QWEN, "training_file": send(tg)["id"]} | more)


def test_together_keeps_files(together: TogetherSimulator, tg: Client) -> None:
    file = send(tg)
    assert (file["filename"], file["FileType"], file["LineCount"]) == ("train.jsonl", "jsonl", 12)
    assert (file["Processed"], file["processing_status"]) == (False, "PENDING")
    seen = tg.get(f"/v1/files/{file['id']}")
    assert (seen["processing_status"], seen["validation_report"]["dataset_format"]) == ("COMPLETED", "CONVERSATION")
    assert tg.get(f"/v1/files/{file['id']}/content") == ROWS * 12
    assert [found["id"] for found in tg.get("/v1/files")["data"]] == [file["id"]]
    assert tg.ask("DELETE", f"/v1/files/{file['id']}") == {"id": file["id"], "deleted": True}
    assert tg.get(f"/v1/files/{file['id']}", 404)["error"]["type"] == "invalid_request_error"
    for wrong in ({"purpose": "batch-api"}, {"file_type": "csv"}, {"file_name": "a.csv"}, {"more": "1"}):
        send(tg, ROWS, 400, **wrong)
    assert tg.get(f"/v1/files/{send(tg, b'no')['id']}")["processing_status"] == "INVALID_FORMAT"


def test_the_life_of_a_together_job(together: TogetherSimulator, tg: Client) -> None:
    made = tune(tg, suffix="mine", random_seed=7, n_checkpoints=2, learning_rate=1e-4)
    assert (made["status"], made["suffix"], made["batch_size"], made["random_seed"]) == ("pending", "mine", 32, 7)
    assert made["created_at"].endswith("Z")
    path = f"/v1/fine-tunes/{made['id']}"
    seen = [tg.get(path) for _ in range(6)]
    assert [job["status"] for job in seen] == [*together.states[1:], "completed"]
    assert not {"suffix", "random_seed"} & set(seen[-1])
    assert [job["suffix"] for job in tg.get("/v1/fine-tunes")["data"]] == ["mine"]
    assert seen[-1]["model_output_name"].startswith("acme/Qwen3-8B-mine-")
    events = tg.get(f"{path}/events")["data"]
    assert [event["type"] for event in events][:2] == ["job_pending", "job_start"]
    assert events[-1]["type"] == "job_complete"
    assert [kept["step"] for kept in tg.get(f"{path}/checkpoints")["data"]] == [10, 20]
    assert tg.get(f"{path}/metrics")["metrics"][0]["train/global_step"] == 1
    assert together.created == [made["id"]]
    tg.post(f"{path}/cancel", 400)
    assert "message" in tg.ask("DELETE", path)
    assert together.destroyed == [made["id"]]
    tg.get(path, 404)


def test_a_together_job_is_cancelled_held_and_given_odd_words(together: TogetherSimulator, tg: Client) -> None:
    together.stop_at = "running"
    id = tune(tg)["id"]
    assert [tg.get(f"/v1/fine-tunes/{id}")["status"] for _ in range(3)] == ["queued", "running", "running"]
    together.set_status(id, "napping")
    assert tg.get(f"/v1/fine-tunes/{id}")["status"] == "napping"
    together.set_status(id, None)
    assert tg.post(f"/v1/fine-tunes/{id}/cancel")["status"] == "cancel_requested"
    assert tg.get(f"/v1/fine-tunes/{id}")["status"] == "cancelled"
    failed = tune(tg)["id"]
    together.finish_job(failed, "user_error")
    assert tg.get(f"/v1/fine-tunes/{failed}")["status"] == "user_error"


@pytest.mark.parametrize(
    "wrong",
    [
        {"n_epochs": "auto"},
        {"batch_size": "auto"},
        {"batch_size": 4},
        {"learning_rate": 0.01},
        {"learning_rate_multiplier": 1},
        {"metadata": {}},
        {"seed": 1},
        {"suffix": "x" * 41},
        {"model": "gpt-4o"},
        {"n_evals": 3},
        {"training_method": {"method": "sft"}},
        {"training_method": {"method": "dpo", "beta": 0.1}},
        {"training_method": {"method": "dpo", "dpo_beta": 0.1}},
        {"training_type": {"type": "Lora", "lora_r": 8}},
        {"from_checkpoint": "ft-1"},
    ],
)
def test_together_refuses_what_it_does_not_take(together: TogetherSimulator, tg: Client, wrong: Json) -> None:
    assert tune(tg, 400, **wrong)["error"]["message"]
    assert together.created == []


def test_together_takes_preferences_evaluations_and_lora(tg: Client) -> None:
    pairs = send(tg, PAIRS * 12)["id"]
    method, lora = {"method": "dpo", "dpo_beta": 0.2}, {"type": "Lora", "lora_r": 8, "lora_alpha": 16}
    more = {"training_method": method, "training_type": lora, "validation_file": pairs, "n_evals": 2, "batch_size": 8}
    made = tune(tg, training_file=pairs, **more)
    assert (made["training_method"], made["training_type"]) == (method, lora)


def test_together_serves_a_model_only_from_an_endpoint(together: TogetherSimulator, tg: Client) -> None:
    chat, endpoints = "/v1/chat/completions", "/v1/endpoints"
    job = tune(tg)
    model = job["model_output_name"]
    scaling = {"min_replicas": 1, "max_replicas": 1}
    tg.post(endpoints, 404, model=model, hardware=HARDWARE, autoscaling=scaling)  # not before it is trained
    together.finish_job(job["id"])
    assert tg.chat(chat, model, 400)["error"]["code"] == "model_not_available"
    assert tg.get("/v1/hardware", model=model)["data"][0]["id"] == HARDWARE
    tg.post(endpoints, 400, model=model, hardware="1x_abacus", autoscaling=scaling)
    tg.post(endpoints, 400, model=model, hardware=HARDWARE, autoscaling={"min_replicas": 1})
    made = tg.post(endpoints, model=model, hardware=HARDWARE, autoscaling=scaling, display_name="mine")
    assert (made["state"], made["type"], len(together.endpoints)) == ("PENDING", "dedicated", 1)
    assert tg.chat(chat, made["name"], 400)["error"]["code"] == "dedicated_endpoint_not_running"
    assert [tg.get(f"{endpoints}/{made['id']}")["state"] for _ in range(2)] == ["STARTING", "STARTED"]
    assert tg.chat(chat, made["name"]) == "tuned:grüß"
    assert tg.chat(chat, model) == "tuned:grüß"
    assert tg.ask("DELETE", f"{endpoints}/{made['id']}", 204) == b""
    tg.chat(chat, made["name"], 404)
    assert together.endpoints == {}


def test_a_together_reference_model_is_never_served(together: TogetherSimulator, tg: Client) -> None:
    job = tune(tg, model=REFERENCE)
    together.finish_job(job["id"])
    tg.get("/v1/hardware", 404, model=job["model_output_name"])
    tg.get("/v1/hardware", 404, model=REFERENCE)


def test_together_lists_models_without_an_envelope_and_streams(tg: Client) -> None:
    assert SERVERLESS in [model["id"] for model in tg.get("/v1/models")]
    assert tg.chat("/v1/chat/completions", SERVERLESS) == "base:grüß"
    events = tg.post("/v1/chat/completions", model=SERVERLESS, messages=HI, stream=True)
    assert b"[DONE]" in events
    tg.http.headers["authorization"] = "Bearer other"
    assert tg.get("/v1/models", 401)["error"]["code"] == "invalid_api_key"


# Fireworks.

ROOT = "/v1/accounts/acme"
TALK = "/inference/v1/chat/completions"
SFT, DPO = f"{ROOT}/supervisedFineTuningJobs", f"{ROOT}/dpoJobs"


@pytest.fixture
def fw(fireworks: FireworksSimulator, stack: ExitStack) -> Client:
    return Client(fireworks, stack)


def dataset(fw: Client, id: str = "data", content: bytes | None = ROWS * 12) -> str:
    """A dataset with its content, or none, and not yet ready."""
    fw.post(f"{ROOT}/datasets", datasetId=id, dataset={"userUploaded": {}, "exampleCount": "12"})
    if content is not None:
        fw.ask("POST", f"{ROOT}/datasets/{id}:upload", files={"file": ("train.jsonl", content)})
    return f"accounts/acme/datasets/{id}"


def ready(fw: Client, id: str = "data", content: bytes = ROWS * 12) -> str:
    name = dataset(fw, id, content)
    assert [fw.get(f"/v1/{name}")["state"] for _ in range(2)] == ["UPLOADING", "READY"]
    return name


def states(fw: Client, name: str, times: int) -> list[str]:
    return [fw.get(f"/v1/{name}")["state"].removeprefix("JOB_STATE_") for _ in range(times)]


def trained(fireworks: FireworksSimulator, fw: Client) -> str:
    job = fw.post(SFT, dataset=ready(fw), baseModel=BASE, outputModel="mine", loraRank=8)
    fireworks.finish_job(job["name"])
    model: str = job["outputModel"]
    return model


def test_fireworks_takes_a_dataset_in_one_request(fireworks: FireworksSimulator, fw: Client) -> None:
    name = dataset(fw, content=None)
    body: Json = {"userUploaded": {}, "exampleCount": "12"}
    assert fw.post(f"{ROOT}/datasets", 409, datasetId="data", dataset=body)["code"] == 6
    fireworks.upload_limit = 100
    fw.ask("POST", f"/v1/{name}:upload", 413, files={"file": ("train.jsonl", ROWS * 12)})
    fireworks.upload_limit = 10000
    assert states(fw, name, 3) == ["UPLOADING"] * 3
    assert fw.ask("POST", f"/v1/{name}:upload", files={"file": ("train.jsonl", ROWS * 12)})["id"] == "data"
    assert states(fw, name, 2) == ["UPLOADING", "READY"]
    dataset(fw, "more")
    first = fw.get(f"{ROOT}/datasets", pageSize=1)
    second = fw.get(f"{ROOT}/datasets", pageSize=1, pageToken=first["nextPageToken"])
    assert [page["datasets"][0]["name"] for page in (first, second)] == [name, "accounts/acme/datasets/more"]
    assert (second["nextPageToken"], second["totalSize"]) == ("", 2)
    assert fw.ask("DELETE", f"/v1/{name}") == {}
    assert fw.get(f"/v1/{name}", 404)["code"] == 5
    wrongs: list[Json] = [{"exampleCount": 12, "userUploaded": {}}, {"userUploaded": {}}, body | {"rows": 1}]
    for wrong in wrongs:
        assert fw.post(f"{ROOT}/datasets", 400, datasetId="wrong", dataset=wrong)["code"] == 3
    fw.post(f"{ROOT}/datasets", 400, datasetId="1st", dataset=body)


def test_fireworks_takes_a_dataset_by_a_signed_url(fireworks: FireworksSimulator, fw: Client) -> None:
    name = dataset(fw, content=None)
    content, size = ROWS * 12, str(len(ROWS * 12))
    assert fw.post(f"/v1/{name}:validateUpload", 400)["code"] == 9
    urls = fw.post(f"/v1/{name}:getUploadEndpoint", filenameToSize={"train.jsonl": size})["filenameToSignedUrls"]
    signed = {"content-type": "application/octet-stream", "x-goog-content-length-range": f"{size},{size}"}
    with httpx2.Client(trust_env=False, timeout=10) as plain:
        assert plain.put(urls["train.jsonl"], content=content).status_code == 403
        assert plain.put(urls["train.jsonl"], content=content[1:], headers=signed).status_code == 400
        leaked = plain.put(urls["train.jsonl"], content=content, headers=signed | {"authorization": "Bearer x"})
        assert (leaked.status_code, len(fireworks.leaks)) == (400, 1)
        assert fw.post(f"/v1/{name}:validateUpload", 400)["code"] == 9
        assert plain.put(urls["train.jsonl"], content=content, headers=signed).status_code == 200
    assert fw.post(f"/v1/{name}:validateUpload") == {}
    assert states(fw, name, 2) == ["UPLOADING", "READY"]
    assert fireworks.contents[name] == content


def test_the_life_of_a_fireworks_job(fireworks: FireworksSimulator, fw: Client) -> None:
    body: Json = {"dataset": dataset(fw), "baseModel": BASE, "displayName": "mine", "epochs": 2, "learningRate": 1e-4}
    assert fw.post(SFT, 400, **body)["code"] == 9  # the dataset is not ready
    states(fw, body["dataset"], 2)
    made = fw.post(f"{SFT}?supervisedFineTuningJobId=job-1", **body)
    assert made["name"] == "accounts/acme/supervisedFineTuningJobs/job-1"
    assert made["outputModel"] == "accounts/acme/models/job-1"
    assert fw.post(f"{SFT}?supervisedFineTuningJobId=job-1", 409, **body)["code"] == 6
    expected = ["VALIDATING", "PENDING", "RUNNING", "WRITING_RESULTS", "COMPLETED", "COMPLETED"]
    assert states(fw, made["name"], 6) == expected
    done = fw.get(f"/v1/{made['name']}")
    assert (done["jobProgress"]["percent"], done["completedTime"][-1]) == (100, "Z")
    assert [job["name"] for job in fw.get(SFT)["supervisedFineTuningJobs"]] == [made["name"]] == fireworks.created
    assert fw.get("/v1/accounts/acme/models/job-1")["fineTuningJob"] == made["name"]
    assert fw.post(f"/v1/{made['name']}:cancel", 400)["code"] == 9
    assert fw.ask("DELETE", f"/v1/{made['name']}") == {}
    assert fireworks.destroyed == [made["name"]]
    fw.get(f"/v1/{made['name']}", 404)


def test_a_fireworks_job_is_cancelled_resumed_and_fails(fireworks: FireworksSimulator, fw: Client) -> None:
    fireworks.stop_at = "JOB_STATE_RUNNING"
    data = ready(fw)
    name = fw.post(SFT, dataset=data, baseModel=BASE)["name"]
    assert states(fw, name, 4) == ["VALIDATING", "PENDING", "RUNNING", "RUNNING"]
    assert fw.post(f"/v1/{name}:resume", 400)["code"] == 9
    fireworks.finish_job(name, "JOB_STATE_PAUSED")
    assert fw.post(f"/v1/{name}:resume")["state"] == "JOB_STATE_PENDING"
    fireworks.set_status(name, "JOB_STATE_NAPPING")
    assert states(fw, name, 1) == ["NAPPING"]
    fireworks.set_status(name, None)
    assert fw.post(f"/v1/{name}:cancel") == {}
    assert states(fw, name, 1) == ["CANCELLED"]
    failing = fw.post(DPO, dataset=data, trainingConfig={"baseModel": BASE})["name"]
    assert states(fw, failing, 2) == ["VALIDATING", "FAILED"]
    assert fw.get(f"/v1/{failing}")["status"]["code"] == "INVALID_ARGUMENT"


def test_fireworks_trains_on_preferences(fw: Client) -> None:
    loss = {"method": "DPO", "dpo": {"beta": 0.2}}
    config = {"baseModel": BASE, "outputModel": "liked", "batchSizeSamples": 8}
    body = {"dataset": ready(fw, content=PAIRS * 12), "lossConfig": loss, "trainingConfig": config}
    made = fw.post(f"{DPO}?dpoJobId=d1", **body)
    assert made["trainingConfig"]["outputModel"] == "accounts/acme/models/liked"
    assert states(fw, made["name"], 5)[-1] == "COMPLETED"
    assert (len(fw.get(DPO)["dpoJobs"]), fw.get(SFT)["supervisedFineTuningJobs"]) == (1, [])
    fw.post(DPO, 400, **body | {"lossConfig": {"dpo": {"beta": 0.5}}})


@pytest.mark.parametrize(
    "wrong",
    [
        {"n_epochs": 1},
        {"epochs": "auto"},
        {"learningRate": 1.0},
        {"batchSize": 8},
        {"loraRank": 128},
        {"baseModel": "gpt-4o"},
        {"warmStartFrom": BASE},
        {"outputModel": "Not An Id"},
        {"metadata": {}},
    ],
)
def test_fireworks_refuses_what_it_does_not_take(fireworks: FireworksSimulator, fw: Client, wrong: Json) -> None:
    found = fw.post(SFT, 400, **{"dataset": ready(fw), "baseModel": BASE} | wrong)
    assert set(found) == {"code", "message", "details"}
    assert fireworks.created == []


def test_fireworks_serves_a_lora_merged_into_a_deployment(fireworks: FireworksSimulator, fw: Client) -> None:
    model = trained(fireworks, fw)
    assert fw.chat(TALK, model, 404)["error"]["code"] == "NOT_FOUND"
    made = fw.post(f"{ROOT}/deployments?deploymentId=d1", baseModel=model)
    assert fw.post(f"{ROOT}/deployments?deploymentId=d1", 409, baseModel=model)["code"] == 6
    assert states(fw, made["name"], 2) == ["CREATING", "READY"]
    assert {fw.chat(TALK, name) for name in (model, made["name"], f"{model}#{made['name']}")} == {"tuned:grüß"}
    assert fw.get(f"/v1/{model}")["deployedModelRefs"][0]["state"] == "DEPLOYED"
    assert fw.ask("DELETE", f"/v1/{model}", 400)["code"] == 9
    fw.ask("DELETE", f"/v1/{made['name']}")
    fw.chat(TALK, model, 404)
    assert (fireworks.deployments, fireworks.deployed) == ({}, {})
    fw.ask("DELETE", f"/v1/{model}")


def test_fireworks_serves_a_lora_as_an_add_on(fireworks: FireworksSimulator, fw: Client) -> None:
    model = trained(fireworks, fw)
    place = fw.post(f"{ROOT}/deployments", baseModel=BASE, enableAddons=True)["name"]
    assert fw.post(f"{ROOT}/deployedModels", 400, model=model, deployment=place)["code"] == 9
    states(fw, place, 2)
    loaded = fw.post(f"{ROOT}/deployedModels", model=model, deployment=place)
    assert (loaded["state"], loaded["default"]) == ("DEPLOYING", True)
    assert fw.post(f"{ROOT}/deployedModels", 400, model=model, deployment=place)["code"] == 9
    fw.chat(TALK, model, 404)
    assert states(fw, loaded["name"], 2) == ["DEPLOYING", "DEPLOYED"]
    assert fw.chat(TALK, model) == "tuned:grüß"
    assert fw.chat(TALK, place) == "base:grüß"
    assert len(fw.get(f"{ROOT}/deployedModels")["deployedModels"]) == 2
    assert fw.ask("DELETE", f"/v1/{place}", 400)["code"] == 9
    fw.ask("DELETE", f"/v1/{loaded['name']}")
    fw.chat(TALK, model, 404)


def test_fireworks_knows_keys_accounts_and_faults(fireworks: FireworksSimulator, fw: Client) -> None:
    assert [model["name"] for model in fw.get("/v1/accounts/fireworks/models")["models"]][1] == BASE
    assert fw.get("/v1/accounts/other/models", 403)["code"] == 7
    assert fw.get("/v1/nothing", 404)["code"] == 5
    fireworks.fault("models", "error_before", status=503)
    assert fw.get(f"{ROOT}/models", 503)["code"] == 14
    fireworks.fault("create_job", "cut_after")
    body = {"dataset": ready(fw), "baseModel": BASE}
    with pytest.raises(httpx2.RemoteProtocolError):
        fw.post(f"{SFT}?supervisedFineTuningJobId=once", **body)
    assert fw.post(f"{SFT}?supervisedFineTuningJobId=once", 409, **body)["code"] == 6
    assert len(fireworks.created) == 1
    fw.http.headers["authorization"] = "Bearer other"
    assert fw.get(f"{ROOT}/models", 401)["code"] == 16
    assert fw.chat(TALK, BASE, 401)["error"]["code"] == "UNAUTHORIZED"

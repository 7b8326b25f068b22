"""Keys and projects: who may do what, and that nobody sees what is another project's."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.wire.conftest import SETTINGS, Gateway, rows, running

ENVELOPE = {"message", "type", "param", "code"}


def tuneway(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tuneway", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})


def make_key(data: Path, *options: str) -> str:
    made = tuneway("keys", "create", "--data", str(data), *options)
    assert made.returncode == 0, made.stderr
    return made.stdout.strip()


@dataclass
class Guarded:
    """A gateway with auth on, with keys of two projects."""

    gateway: Gateway
    admin: str
    own: str
    foreign: str
    reader: str


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    folder = tmp_path_factory.mktemp("guarded")
    data = folder / "data"
    scopes = ("--scope", "read", "--scope", "tune", "--scope", "chat", "--scope", "admin")
    admin = make_key(data, *scopes)
    own = make_key(data)
    foreign = make_key(data, "--project", "other", *scopes)
    reader = make_key(data, "--scope", "read")
    with running(folder, SETTINGS + 'auth = "on"\n') as gateway:
        yield Guarded(gateway, admin, own, foreign, reader)


def trained(client: openai.OpenAI) -> str:
    """The id of a finished job."""
    file = client.files.create(file=("a.jsonl", rows()), purpose="fine-tune")
    job = client.fine_tuning.jobs.create(model="fake-1", training_file=file.id)
    end = time.monotonic() + 60
    while client.fine_tuning.jobs.retrieve(job.id).status != "succeeded":
        assert time.monotonic() < end
        time.sleep(0.02)
    return job.id


def test_every_route_asks_for_a_key(guarded: Guarded) -> None:
    walked = 0
    for method, path in operations(guarded):
        answer = guarded.gateway.http.request(method, re.sub(r"\{\w+\}", "x", path))
        if path in ("/healthz", "/readyz"):
            assert answer.status_code == 200
            continue
        assert answer.status_code == 401, (method, path)
        assert answer.json()["error"].keys() == ENVELOPE
        walked += 1
    assert walked > 20
    assert guarded.gateway.http.get("/v1/nowhere").status_code == 401


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": "Bearer sk-of-somebody-else-0123456789"},
        {"authorization": "Bearer tnw_" + "a" * 43},
        {"api-key": "tnw_wrong"},
        {"authorization": "Basic dG53OngK"},
        {"authorization": "Bearer"},
        {"authorization": "Bearer \xff\xfe"},
        {"x-tuneway-api-key": ""},
    ],
)
def test_a_wrong_key_is_a_401_that_does_not_repeat_it(guarded: Guarded, headers: dict[str, str]) -> None:
    raw = {name: value.encode("latin-1") for name, value in headers.items()}
    answer = guarded.gateway.http.get("/v1/models", headers=raw)
    assert answer.status_code == 401
    for value in headers.values():
        assert len(value) < 12 or value.split()[-1] not in answer.text
    assert "tnw_wrong" not in guarded.gateway.log()


def test_the_key_may_stand_in_each_of_four_headers(guarded: Guarded) -> None:
    for header in ("x-tuneway-api-key", "x-portkey-api-key", "api-key"):
        assert guarded.gateway.http.get("/v1/models", headers={header: guarded.own}).status_code == 200
    both = {"x-portkey-api-key": guarded.own, "authorization": "Bearer sk-the-provider"}
    assert guarded.gateway.http.get("/v1/models", headers=both).status_code == 200
    assert guarded.gateway.client_with(guarded.own).models.list().data


@pytest.mark.parametrize(
    ("method", "path", "scope"),
    [
        ("POST", "/v1/files", "tune"),
        ("POST", "/v1/fine_tuning/jobs", "tune"),
        ("DELETE", "/v1/models/x", "tune"),
        ("POST", "/v1/chat/completions", "chat"),
        ("POST", "/openai/deployments/fake-1/chat/completions?api-version=1", "chat"),
        ("GET", "/v1/tuneway/keys", "admin"),
        ("GET", "/v1/fine_tuning/checkpoints/x/permissions", "admin"),
    ],
)
def test_a_key_without_the_scope_is_a_403_that_names_it(guarded: Guarded, method: str, path: str, scope: str) -> None:
    answer = guarded.gateway.http_with(guarded.reader).request(method, path)
    assert answer.status_code == 403
    assert f"this needs {scope}" in answer.json()["error"]["message"]


def test_no_spelling_of_a_path_leads_past_its_scope(guarded: Guarded) -> None:
    """Starlette's patterns end in `$`, before which a line break may stand."""
    reader = guarded.gateway.http_with(guarded.reader)
    body = {"scopes": ["admin"], "project_ids": ["other"], "url": "http://127.0.0.1:9/"}
    for method, path in operations(guarded):
        for end in ("%0A", "%0a", "/", "%00", "%20"):
            answer = reader.request(method, re.sub(r"\{\w+\}", "x", path) + end, json=body)
            assert answer.status_code in (403, 404, 405), (method, path, end, answer.text)


def operations(guarded: Guarded) -> list[tuple[str, str]]:
    """Every method and path of the API description."""
    paths = guarded.gateway.http_with(guarded.admin).get("/openapi.json").json()["paths"]
    return [(method.upper(), path) for path, item in paths.items() for method in item if method != "parameters"]


def test_another_projects_things_are_not_there(guarded: Guarded) -> None:
    """Every operation on one thing, asked with a key of another project that may do everything: 404, and no trace."""
    mine = guarded.gateway.client_with(guarded.admin)
    job = mine.fine_tuning.jobs.retrieve(trained(mine))
    assert job.fine_tuned_model is not None
    upload = mine.uploads.create(filename="a.jsonl", purpose="fine-tune", bytes=5, mime_type="text/jsonl")
    completion = mine.chat.completions.create(model="fake-1", messages=[{"role": "user", "content": "hi"}], store=True)
    admin = guarded.gateway.http_with(guarded.admin)
    webhook = admin.post("/v1/tuneway/webhooks", json={"url": "http://127.0.0.1:9/x"}).json()["id"]
    permission = admin.post(
        f"/v1/fine_tuning/checkpoints/{job.fine_tuned_model}/permissions", json={"project_ids": ["third"]}
    ).json()["data"][0]["id"]
    things: dict[str, str] = {
        "file_id": job.training_file,
        "job_id": job.id,
        "upload_id": upload.id,
        "completion_id": completion.id,
        "model": job.fine_tuned_model,
        "checkpoint": job.fine_tuned_model,
        "permission_id": permission,
        "webhook_id": webhook,
        "key_id": admin.get("/v1/tuneway/keys").json()["data"][0]["id"],
        "import_id": "import_none",  # a real one needs an account: see test_imports
    }
    bodies: dict[str, Any] = {
        "/v1/fine_tuning/checkpoints/{checkpoint}/permissions": {"project_ids": ["other"]},
        "/v1/uploads/{upload_id}/complete": {"part_ids": ["part_0"]},
        "/v1/chat/completions/{completion_id}": {"metadata": {"a": "b"}},
        "/v1/tuneway/jobs/{job_id}/adopt": {"provider_job_id": None},
    }
    foreign = guarded.gateway.http_with(guarded.foreign)
    walked = 0
    for method, path in operations(guarded):
        if "{" not in path or path.startswith("/v1/tuneway/providers/"):  # those are the gateway's, not a project's
            continue
        url = re.sub(r"\{(\w+)\}", lambda found: things[found[1]], path)
        if path.endswith("/parts"):
            answer = foreign.request(method, url, files={"data": b"12345"})
        elif method == "POST" and path in bodies:
            answer = foreign.request(method, url, json=bodies[path])
        else:
            answer = foreign.request(method, url)
        assert answer.status_code == 404, (method, path, answer.text)
        walked += 1
    assert walked > 15
    for path in ("/v1/files", "/v1/fine_tuning/jobs", "/v1/chat/completions", "/v1/tuneway/webhooks"):
        assert foreign.get(path).json()["data"] == []
    assert job.fine_tuned_model not in foreign.get("/v1/models").text
    refused = foreign.post("/v1/fine_tuning/jobs", json={"model": "fake-1", "training_file": job.training_file})
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "training_file"
    assert mine.fine_tuning.jobs.retrieve(job.id).status == "succeeded"


def test_a_checkpoint_is_used_by_the_project_that_was_let_in(guarded: Guarded) -> None:
    mine, other = guarded.gateway.client_with(guarded.admin), guarded.gateway.client_with(guarded.foreign)
    model = mine.fine_tuning.jobs.retrieve(trained(mine)).fine_tuned_model
    assert model is not None

    def ask() -> str | None:
        chat = other.chat.completions.create(model=model, messages=[{"role": "user", "content": "hi"}])
        return chat.choices[0].message.content

    with pytest.raises(openai.NotFoundError):
        ask()
    permissions = mine.fine_tuning.checkpoints.permissions
    (granted,) = permissions.create(model, project_ids=["other", "other"]).data
    assert ask()
    assert permissions.create(model, project_ids=["other"]).data[0].id == granted.id
    seen = [client.models.retrieve(model).to_dict()["tuneway"]["job"] for client in (mine, other)]  # type: ignore[index]
    assert [job is None for job in seen] == [False, True]
    permissions.create(model, project_ids=["third"])
    first = mine.fine_tuning.checkpoints.permissions.list(model, limit=1, order="ascending")
    assert [one.project_id for one in first.data] == ["other"]
    assert first.has_more
    assert [one.project_id for one in permissions.list(model, project_id="third").data] == ["third"]
    # To use it is all: it is neither listed nor deleted nor passed on by its guest.
    assert model not in [one.id for one in other.models.list()]
    for call in (other.models.delete, other.fine_tuning.checkpoints.permissions.list):
        with pytest.raises(openai.NotFoundError):
            call(model)
    assert permissions.delete(granted.id, fine_tuned_model_checkpoint=model).deleted
    with pytest.raises(openai.NotFoundError):
        ask()
    with pytest.raises(openai.NotFoundError):
        permissions.delete(granted.id, fine_tuned_model_checkpoint=model)


def test_keys_are_made_and_revoked_over_http(guarded: Guarded) -> None:
    admin = guarded.gateway.http_with(guarded.admin)
    made = admin.post("/v1/tuneway/keys", json={"name": "ci", "scopes": ["read"], "expires_after": 3600}).json()
    assert made["key"].startswith("tnw_")
    assert made["expires_at"] == made["created_at"] + 3600
    user = guarded.gateway.http_with(made["key"])
    assert user.get("/v1/files").status_code == 200
    listed = admin.get("/v1/tuneway/keys").text
    assert made["id"] in listed
    assert made["key"] not in listed
    assert admin.delete(f"/v1/tuneway/keys/{made['id']}").json()["revoked_at"] is not None
    assert user.get("/v1/files").status_code == 401
    assert "was revoked" in user.get("/v1/files").json()["error"]["message"]
    # A key makes keys for its own project alone.
    assert admin.post("/v1/tuneway/keys", json={"project": "other"}).status_code == 403


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"project": "a:b"}, "project"),
        ({"scopes": ["root"]}, "scopes.0"),
        ({"scopes": []}, "scopes"),
        ({"expires_after": 0}, "expires_after"),
        ({"key": "tnw_mine"}, "key"),
        ({"name": 1}, "name"),
    ],
)
def test_a_wrong_key_request_is_named(gateway: Gateway, body: Any, param: str) -> None:
    answer = gateway.http.post("/v1/tuneway/keys", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


def test_no_key_lies_in_the_data_folder(guarded: Guarded) -> None:
    folder = guarded.gateway.data / "data"
    for path in folder.rglob("*"):
        assert not path.is_file() or guarded.own.encode() not in path.read_bytes()
    assert stat.S_IMODE((folder / "vault.key").stat().st_mode) == 0o600
    assert guarded.own not in guarded.gateway.log()


def test_the_command_line_uses_the_running_gateway(guarded: Guarded) -> None:
    data, url = str(guarded.gateway.data / "data"), f"{guarded.gateway.url}/v1"
    refused = tuneway("keys", "list", "--data", data, TUNEWAY_URL=url, TUNEWAY_API_KEY=guarded.own)
    assert refused.returncode == 1
    assert "this needs admin" in refused.stderr
    made = tuneway(
        "keys", "create", "--name", "x", "--json", "--data", data, TUNEWAY_URL=url, TUNEWAY_API_KEY=guarded.admin
    )
    key = json.loads(made.stdout)
    revoked = tuneway("keys", "revoke", key["id"], "--data", data, TUNEWAY_URL=url, TUNEWAY_API_KEY=guarded.admin)
    assert revoked.returncode == 0, revoked.stderr
    listed = tuneway("keys", "list", "--data", data, TUNEWAY_URL=url, TUNEWAY_API_KEY=guarded.admin)
    assert "revoked" in listed.stdout


def test_without_auth_a_key_still_chooses_its_project(gateway: Gateway) -> None:
    key = gateway.http.post("/v1/tuneway/keys", json={"project": "mine"}).json()["key"]
    file = gateway.client_with(key).files.create(file=("a.jsonl", rows()), purpose="fine-tune")
    assert gateway.http.get(f"/v1/files/{file.id}").status_code == 404
    assert gateway.http_with(key).get(f"/v1/files/{file.id}").headers["openai-organization"] == "org-mine"
    assert gateway.http_with("tnw_wrong").get("/v1/files").status_code == 401


def test_metrics_need_a_key(guarded: Guarded) -> None:
    assert guarded.gateway.http.get("/metrics").status_code == 401
    assert guarded.gateway.http_with(guarded.reader).get("/metrics").status_code == 403
    assert guarded.gateway.http_with(guarded.admin).get("/metrics").status_code == 200


def test_a_gateway_that_others_can_reach_needs_auth(tmp_path: Path) -> None:
    refused = tuneway("serve", "--host", "0.0.0.0", "--port", "0", "--data", str(tmp_path / "data"))
    assert refused.returncode == 1
    assert "auth=on" in refused.stderr


def test_a_lost_secret_is_said_at_the_start(tmp_path: Path) -> None:
    make_key(tmp_path)
    (tmp_path / "vault.key").unlink()
    refused = tuneway("serve", "--port", "0", "--data", str(tmp_path))
    assert refused.returncode == 1
    assert "vault.key is missing" in refused.stderr
    # Having said so, it has not made itself at home with a new one.
    assert tuneway("serve", "--port", "0", "--data", str(tmp_path)).returncode == 1

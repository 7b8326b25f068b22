"""What holds for every route: one envelope, the headers of OpenAI's responses, the guard, and what the log may say."""

from __future__ import annotations

import http.client
import json
import logging
import re
import time
from dataclasses import replace
from typing import Any

import httpx2
import openai
import pytest

from tests.contract.conftest import Gateway
from tests.contract.fakes import BASE, tuned
from tuneway import api
from tuneway.api import edge
from tuneway.types import CircuitState, Deployment, LineState


def assert_stamped(response: httpx2.Response) -> None:
    assert re.fullmatch("req_[0-9a-f]{32}", response.headers["x-request-id"])
    assert response.headers["openai-version"] == "2020-10-01"
    assert response.headers["openai-processing-ms"].isdecimal()
    assert not [name for name in response.headers if name.startswith("access-control-")]


def assert_envelope(response: httpx2.Response) -> dict[str, Any]:
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert body.keys() == {"error"}
    assert body["error"].keys() == {"message", "type", "param", "code"}
    assert body["error"]["message"]
    assert body["error"]["type"]
    error: dict[str, Any] = body["error"]
    return error


def test_the_description_refers_to_nothing_that_it_lacks(gateway: Gateway) -> None:
    text = gateway.http.get(f"{gateway.url}/openapi.json").text
    schemas = json.loads(text)["components"]["schemas"]
    referred = set(re.findall(r'"\$ref":"#/components/schemas/(\w+)"', text))
    assert "CreateFineTuningJobRequest" in referred
    assert text.count('"$ref"') == text.count('"$ref":"#/components/schemas/')
    assert referred <= schemas.keys()


def test_an_unexpected_error_is_a_500_that_is_not_tried_again(
    gateway: Gateway, caplog: pytest.LogCaptureFixture
) -> None:
    gateway.jobs.breaks_with = RuntimeError("the disk is on fire")
    client = gateway.client.with_options(max_retries=2)
    with caplog.at_level(logging.DEBUG), pytest.raises(openai.InternalServerError) as raised:
        client.fine_tuning.jobs.create(model="m", training_file="file-secret", metadata={"a": "body-secret"})
    assert_envelope(raised.value.response)
    assert "fire" not in raised.value.response.text
    assert raised.value.response.request.headers["x-stainless-retry-count"] == "0"
    ours = [record for record in caplog.records if record.name.startswith("tuneway")]
    text = "\n".join(logging.Formatter().format(record) for record in ours)
    assert "the disk is on fire" in text
    assert str(raised.value.request_id) in text
    assert "secret" not in text
    assert "sk-any" not in text


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:1", "127.0.0.1", "127.0.0.1:80", "127.1.2.3", "[::1]:9", "[::1]"]
)
def test_loopback_names_are_ours(gateway: Gateway, host: str) -> None:
    assert gateway.http.get(f"{gateway.url}/healthz", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "localhost@evil.example",
        "evil.example:80",
        "192.168.0.1",
        "[::2]",
        "[127.0.0.1",
        "localhost:99:1",
        "",
    ],
)
def test_other_hosts_are_refused(gateway: Gateway, host: str) -> None:
    response = gateway.http.get(f"{gateway.url}/v1/models", headers={"host": host})
    assert response.status_code == 403
    assert_envelope(response)
    assert_stamped(response)


def test_two_hosts_are_refused(gateway: Gateway) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=10)
    connection.putrequest("GET", "/v1/models", skip_host=True)
    connection.putheader("Host", "localhost")
    connection.putheader("Host", "evil.example")
    connection.endheaders()
    assert connection.getresponse().status == 403
    connection.close()


class TestNamed:
    """A gateway with names of its own."""

    @pytest.fixture
    def settings(self) -> api.ApiSettings:
        return api.ApiSettings(allowed_hosts=("Tune.example", "ported.example:8400"))

    @pytest.mark.parametrize(
        ("host", "status"),
        [
            ("tune.example", 200),
            ("TUNE.example:443", 200),
            ("ported.example:8400", 200),
            ("ported.example", 403),
            ("ported.example:1", 403),
            ("localhost", 200),
        ],
    )
    def test_configured_hosts(self, gateway: Gateway, host: str, status: int) -> None:
        assert gateway.http.get(f"{gateway.url}/healthz", headers={"host": host}).status_code == status

    @pytest.mark.parametrize(
        ("host", "origin", "status"),
        [
            ("tune.example", "https://tune.example", 200),
            ("tune.example", "https://tune.example:443", 200),
            ("tune.example:8400", "http://tune.example:8400", 200),
            ("tune.example", "http://tune.example:8400", 403),
            ("tune.example", "https://evil.example", 403),
            ("tune.example", "null", 403),
            ("tune.example", "https://tune.example.evil.example", 403),
            ("localhost:8400", "http://localhost:3000", 403),
            ("localhost:8400", "chrome-extension://localhost:8400", 403),
        ],
    )
    def test_origins(self, gateway: Gateway, host: str, origin: str, status: int) -> None:
        response = gateway.http.get(f"{gateway.url}/v1/models", headers={"host": host, "origin": origin})
        assert response.status_code == status
        assert_stamped(response)


@pytest.mark.parametrize(("site", "status"), [("cross-site", 403), ("same-origin", 200), ("none", 200)])
def test_sec_fetch_site(gateway: Gateway, site: str, status: int) -> None:
    response = gateway.http.get(f"{gateway.url}/v1/models", headers={"sec-fetch-site": site})
    assert response.status_code == status


def test_a_page_of_another_site_has_no_effect(gateway: Gateway) -> None:
    body = {"model": BASE.name, "training_file": "file-1"}
    url = f"{gateway.url}/v1/fine_tuning/jobs"
    assert gateway.http.post(url, json=body, headers={"origin": "https://evil.example"}).status_code == 403
    assert gateway.jobs.done["create"] == 0


def test_health_and_readiness(gateway: Gateway) -> None:
    assert gateway.http.get(f"{gateway.url}/readyz").json() == {"status": "ready"}
    gateway.is_ready = False
    response = gateway.http.get(f"{gateway.url}/readyz")
    assert response.status_code == 503
    assert_envelope(response)
    assert gateway.http.get(f"{gateway.url}/healthz").status_code == 200


def test_metrics_count_requests_by_route_and_status(gateway: Gateway) -> None:
    for path in ("/v1/models", "/v1/models/ft:none", "/v1/models/ft:other", "/none"):
        gateway.http.get(gateway.url + path)
    gateway.http.request("PROPFIND", gateway.url + "/v1/models")
    shown = gateway.http.get(f"{gateway.url}/metrics")
    assert shown.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = shown.text.splitlines()
    for labels, count in (
        ('method="GET",route="list_models",status="200"', 1),
        ('method="GET",route="retrieve_model",status="404"', 2),
        ('method="GET",route="none",status="404"', 1),
        ('method="other",route="list_models",status="405"', 1),
    ):
        assert f"tuneway_http_requests_total{{{labels}}} {count}.0" in lines
    assert 'tuneway_jobs{status="running"} 0.0' in lines


def test_metrics_of_the_lines_to_providers(gateway: Gateway) -> None:
    gateway.accounts.states["mine"] = LineState(CircuitState.OPEN, 2, 16, 120.0, {"2xx": 7, "failed": 1})
    lines = gateway.http.get(f"{gateway.url}/metrics").text.splitlines()
    for line in (
        'tuneway_provider_circuit{provider="mine",state="open"} 1.0',
        'tuneway_provider_circuit{provider="mine",state="closed"} 0.0',
        'tuneway_provider_requests_total{outcome="2xx",provider="mine"} 7.0',
        'tuneway_provider_requests_total{outcome="failed",provider="mine"} 1.0',
        'tuneway_provider_under_way{provider="mine"} 2.0',
        'tuneway_provider_concurrency_limit{provider="mine"} 16.0',
        'tuneway_provider_timeout_seconds{provider="mine"} 120.0',
    ):
        assert line in lines


class TestModels:
    def test_list(self, gateway: Gateway) -> None:
        model = tuned(1)
        gateway.models.rows[model.id] = model
        shown = [found.to_dict() for found in gateway.client.models.list()]
        assert [found["id"] for found in shown] == [BASE.name, model.id]
        assert [found["owned_by"] for found in shown] == ["system", "org-default"]
        assert all(found["object"] == "model" for found in shown)

    @pytest.mark.parametrize("quoted", [False, True])
    def test_names_with_colons_in_paths(self, gateway: Gateway, quoted: bool) -> None:
        model = tuned(1, step=30)
        gateway.models.rows[model.id] = model
        name = model.id.replace(":", "%3A") if quoted else model.id
        url = f"{gateway.url}/v1/models/{name}"
        assert gateway.http.get(url).json()["id"] == model.id
        assert gateway.http.delete(url, headers={"content-type": "application/json"}).json() == {
            "id": model.id,
            "object": "model",
            "deleted": True,
        }
        assert gateway.models.done["delete"] == 1

    def test_the_sdk(self, gateway: Gateway) -> None:
        model = tuned(1)
        gateway.models.rows[model.id] = model
        assert gateway.client.models.retrieve(model.id).id == model.id
        assert gateway.client.models.delete(model.id).deleted
        with pytest.raises(openai.NotFoundError) as raised:
            gateway.client.models.retrieve(model.id)
        assert raised.value.body == {
            "message": f"The model '{model.id}' does not exist",
            "type": "invalid_request_error",
            "param": "model",
            "code": "model_not_found",
        }

    def test_what_serves_it_and_what_that_costs(self, gateway: Gateway) -> None:
        now = int(time.time())
        deployment = Deployment("d-1", now - 7200, sku="developertier", usd_per_hour=1.5, expires_at=now - 3600)
        for number, found in enumerate((None, deployment, Deployment("d-2", now - 60)), start=1):
            model = replace(tuned(number), upstream_model="ft:theirs", deployment=found, imported=number == 2)
            gateway.models.rows[model.id] = model
        url = f"{gateway.url}/v1/models"
        plain, hosted, unpriced = [gateway.http.get(f"{url}/{tuned(n).id}").json()["tuneway"] for n in (1, 2, 3)]
        assert plain == {
            "provider": "local",
            "base": BASE.name,
            "job": tuned(1).job_id,
            "step_number": None,
            "upstream_model": "ft:theirs",
            "deployment": None,
            "imported": False,
        }
        assert hosted["imported"] is True
        assert hosted["deployment"] == {
            "name": "d-1",
            "sku": "developertier",
            "created_at": now - 7200,
            "expires_at": now - 3600,
            "usd_per_hour": 1.5,
            "running_cost_usd": 1.5,
        }
        assert (unpriced["deployment"]["usd_per_hour"], unpriced["deployment"]["running_cost_usd"]) == (None, None)
        azure = gateway.http.get(f"{url}/{tuned(2).id}", headers={"x-tuneway-dialect": "azure"}).json()
        assert azure["tuneway"] == hosted

    def test_a_guest_is_told_its_name_and_no_more(self, gateway: Gateway) -> None:
        theirs = replace(tuned(1), project_id="other", deployment=Deployment("d-1", 1, usd_per_hour=1.0))
        gateway.models.rows[theirs.id] = theirs
        shown = gateway.http.get(f"{gateway.url}/v1/models/{theirs.id}").json()["tuneway"]
        assert (shown["job"], shown["upstream_model"], shown["deployment"]) == (None, None, None)

    def test_a_name_with_a_slash_is_an_unknown_model(self, gateway: Gateway) -> None:
        assert gateway.http.get(f"{gateway.url}/v1/models/org/name").json()["error"]["code"] == "model_not_found"


@pytest.mark.parametrize("path", ["/v1/files", "/v1/fine_tuning/jobs", "/v1/chat/completions"])
def test_a_body_that_stops_coming_is_given_up(gateway: Gateway, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.setattr(edge, "BODY_SILENCE_SECONDS", 0.05)
    kind = "multipart/form-data; boundary=b" if path == "/v1/files" else "application/json"
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=30)
    connection.putrequest("POST", path)
    connection.putheader("content-type", kind)
    connection.putheader("content-length", "1000")
    connection.endheaders()
    connection.send(b"--b\r\n" if path == "/v1/files" else b'{"model": ')
    with connection.getresponse() as response:
        assert response.status == 408
        assert response.headers["connection"] == "close"
        assert json.load(response)["error"].keys() == {"message", "type", "param", "code"}
    connection.close()
    assert gateway.files.done["discard"] == gateway.files.done["receive"]
    assert not gateway.jobs.done

"""Every route, and what is none: one envelope, one set of headers, whatever is sent."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import httpx2
import pytest

from tests.wire.conftest import SETTINGS, Gateway, rows

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND")
BODIES = ((b"", None), (b"{", "application/json"), (b"[]", "application/json"), (b"\xff\0", "text/plain"), (b"x", None))


def described(gateway: Gateway) -> dict[str, set[str]]:
    """The methods of every path, with names of things that are not there."""
    paths = gateway.http.get("/openapi.json").json()["paths"]
    return {re.sub(r"\{\w+\}", "none", path): {method.upper() for method in item} for path, item in paths.items()}


def envelope(response: httpx2.Response) -> dict[str, Any]:
    assert response.headers["content-type"] == "application/json"
    error: dict[str, Any] = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["message"]
    assert error["type"]
    return error


def stamped(response: httpx2.Response) -> None:
    assert re.fullmatch("req_[0-9a-f]{32}", response.headers["x-request-id"])
    assert response.headers["openai-version"] == "2020-10-01"
    assert response.headers["openai-processing-ms"].isdecimal()
    assert not [name for name in response.headers if name.startswith("access-control-")]


def test_every_route_answers_every_method_and_body(gateway: Gateway) -> None:
    routes = described(gateway)
    assert len(routes) > 30
    for path, allowed in routes.items():
        for method in METHODS:
            for content, kind in BODIES:
                headers = {} if kind is None else {"content-type": kind}
                response = gateway.http.request(method, path, content=content, headers=headers)
                stamped(response)
                if method not in allowed:
                    assert response.status_code == 405, (method, path)
                    assert set(response.headers["allow"].split(", ")) == allowed
                    envelope(response)
                elif response.status_code != 200:
                    assert response.status_code in (400, 404, 415), (method, path, response.text)
                    envelope(response)
    assert "Traceback" not in gateway.log()


@pytest.mark.parametrize("path", ["/", "/v1", "/v1/files/", "/v1/none", "/openai", "/v1/tuneway", "/v2/files"])
def test_what_is_no_route(gateway: Gateway, path: str) -> None:
    for method in METHODS:
        response = gateway.http.request(method, path)
        stamped(response)
        assert response.status_code == 404
        assert f"Invalid URL ({method} {path})" in envelope(response)["message"]


@pytest.mark.parametrize(
    ("method", "path", "fields", "status", "error"),
    [
        # Where OpenAI's own words are known from its wire.
        ("GET", "/v1/files/file-none", None, 404, ("No such File object: file-none", "id", None)),
        (
            "GET",
            "/v1/fine_tuning/jobs/123",
            None,
            404,
            ("Could not find fine tune: 123", "fine_tune_id", "fine_tune_not_found"),
        ),
        ("GET", "/v1/models/none", None, 404, ("The model 'none' does not exist", "model", "model_not_found")),
        (
            "POST",
            "/v1/chat/completions",
            {"model": "ft:none", "messages": [{"role": "user", "content": "x"}]},
            404,
            ("The model `ft:none` does not exist or you do not have access to it.", None, "model_not_found"),
        ),
        (
            "POST",
            "/v1/fine_tuning/jobs",
            {"model": "fake-1", "training_file": "7"},
            400,
            ("invalid training_file: 7", "training_file", None),
        ),
        (
            "POST",
            "/v1/fine_tuning/jobs",
            {"training_file": "7"},
            400,
            ("Missing required parameter: 'model'.", "model", "missing_required_parameter"),
        ),
        (
            "GET",
            "/v1/chat/completions/x",
            None,
            404,
            ("Completion x not found", "completion_id", "not_found"),
        ),
    ],
)
def test_openais_words(
    gateway: Gateway, method: str, path: str, fields: Any, status: int, error: tuple[str, str | None, str | None]
) -> None:
    response = gateway.http.request(method, path, json=fields)
    assert response.status_code == status
    found = envelope(response)
    assert (found["message"], found["param"], found["code"]) == error
    assert found["type"] == "invalid_request_error"


@pytest.mark.parametrize("path", ["/v1/fine_tuning/jobs", "/v1/chat/completions"])
def test_a_filter_has_bounds(gateway: Gateway, path: str) -> None:
    pairs = "&".join(f"metadata[{number}]=x" for number in range(1100))
    refused = gateway.http.get(f"{path}?{pairs}")
    assert refused.status_code == 400
    assert envelope(refused)["param"] == "metadata"
    assert gateway.http.get(f"{path}?metadata[a]=b&metadata[c]=d").status_code == 200


@pytest.mark.parametrize("path", ["/v1/files", "/v1/fine_tuning/jobs", "/v1/chat/completions"])
def test_a_place_that_is_not_there_and_no_things_at_all(gateway: Gateway, path: str) -> None:
    """OpenAI's description allows both, and the suites of its SDKs send them."""
    gateway.client.files.create(file=("a.jsonl", rows()), purpose="fine-tune")
    for query in ("after=after", "after=after&limit=0", "limit=0"):
        page = gateway.http.get(f"{path}?{query}")
        assert page.status_code == 200, page.text
        assert page.json()["data"] == []
    assert gateway.http.get("/v1/files?limit=0").json()["has_more"] is True


def test_a_provider_that_is_not_configured(gateway: Gateway) -> None:
    chat = {"model": "fake-1", "messages": [{"role": "user", "content": "x"}]}
    for header, name, status in (
        ("x-portkey-provider", "openai", 400),
        ("x-tuneway-provider", "fake", 200),
        ("x-portkey-provider", "@fake", 200),
    ):
        response = gateway.http.post("/v1/chat/completions", json=chat, headers={header: name})
        assert response.status_code == status
    job = {"model": "fake-1", "training_file": "file-0"}
    refused = gateway.http.post("/v1/fine_tuning/jobs", json=job, headers={"x-portkey-provider": "openai"})
    assert envelope(refused)["param"] == "x-portkey-provider"


def test_names_of_the_map_are_models(start: Callable[..., Gateway]) -> None:
    gateway = start(SETTINGS + '[model_map]\n"gpt-4o-mini" = "fake-1"\n')
    assert gateway.client.models.retrieve("gpt-4o-mini").id == "gpt-4o-mini"
    assert "gpt-4o-mini" in [model.id for model in gateway.client.models.list()]

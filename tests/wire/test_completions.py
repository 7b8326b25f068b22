"""Chat completions that are stored, looked at, changed, and made into a training file."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.wire.conftest import SETTINGS, Gateway

BASE = "fake-1"


def chat(gateway: Gateway, text: str, **more: Any) -> Any:
    messages: Any = [{"role": "system", "content": "Turn it round."}, {"role": "user", "content": text}]
    return gateway.client.chat.completions.create(model=BASE, messages=messages, **more)


@pytest.fixture(autouse=True)
def _empty(gateway: Gateway) -> Iterator[None]:
    yield
    for completion in gateway.client.chat.completions.list(limit=10000):
        gateway.client.chat.completions.delete(completion.id)


def wire(gateway: Gateway, method: str, path: str, **sent: Any) -> tuple[int, Any]:
    response = gateway.http.request(method, f"/v1{path}", **sent)
    return response.status_code, response.json()


@pytest.mark.parametrize("stream", [False, True])
def test_a_stored_completion_can_be_read_changed_and_deleted(gateway: Gateway, stream: bool) -> None:
    stored = gateway.client.chat.completions
    if stream:
        chunks = list(chat(gateway, "one two", store=True, stream=True, metadata={"a": "x"}))
        name, text = chunks[0].id, "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    else:
        answer = chat(gateway, "one two", store=True, metadata={"a": "x"})
        name, text = answer.id, answer.choices[0].message.content
    found = stored.retrieve(name)
    assert found.choices[0].message.content == text == "two one"
    assert found.choices[0].finish_reason == "stop"
    assert found.to_dict()["metadata"] == {"a": "x"}
    if not stream:
        assert found.to_dict() == {**answer.to_dict(), "metadata": {"a": "x"}}
    assert stored.update(name, metadata={"b": "y"}).to_dict()["metadata"] == {"b": "y"}
    assert stored.update(name, metadata=None).to_dict()["metadata"] is None
    assert stored.retrieve(name).to_dict() == {**found.to_dict(), "metadata": None}
    assert [one.id for one in stored.list()] == [name]
    gone = stored.delete(name)
    assert (gone.id, gone.object, gone.deleted) == (name, "chat.completion.deleted", True)
    for ask in (stored.retrieve, stored.delete, stored.messages.list, lambda it: stored.update(it, metadata={})):
        with pytest.raises(openai.NotFoundError) as raised:
            ask(name)
        assert (raised.value.param, raised.value.code) == ("completion_id", "not_found")
        assert raised.value.body["message"] == f"Completion {name} not found"  # type: ignore[index]


def test_only_what_asks_for_it_is_stored(gateway: Gateway) -> None:
    for more in ({}, {"store": False}, {"store": None}, {"metadata": {"a": "x"}}):
        chat(gateway, "hi", **more)
    with pytest.raises(openai.BadRequestError):
        chat(gateway, "hi", store=True, temperature=3)
    assert wire(gateway, "GET", "/chat/completions") == (
        200,
        {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False},
    )


def test_lists_are_filtered_and_paged(gateway: Gateway) -> None:
    names = [chat(gateway, "hi", store=True, metadata={"n": str(n), "odd": str(n % 2)}).id for n in range(5)]
    stored = gateway.client.chat.completions
    assert [one.id for one in stored.list(limit=2)] == names  # page after page
    assert [one.id for one in stored.list(limit=2, order="desc")] == names[::-1]
    assert [one.id for one in stored.list(metadata={"odd": "1"})] == names[1::2]
    assert [one.id for one in stored.list(metadata={"odd": "1", "n": "3"}, model=BASE)] == [names[3]]
    assert list(stored.list(model="another")) == []
    page = wire(gateway, "GET", f"/chat/completions?after={names[0]}&limit=2")[1]
    assert (page["first_id"], page["last_id"], page["has_more"]) == (names[1], names[2], True)


def test_messages_are_shown_as_they_were_sent(gateway: Gateway) -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    messages: Any = [
        {"role": "user", "content": parts, "name": "ann"},
        {"role": "assistant", "content": None, "refusal": "no"},
        {"role": "user", "content": "three"},
    ]
    name = gateway.client.chat.completions.create(model=BASE, messages=messages, store=True).id
    path = f"/chat/completions/{name}/messages"
    shown = [
        {"id": f"{name}-0", "role": "user", "name": "ann", "content": None, "refusal": None, "content_parts": parts},
        {"id": f"{name}-1", "role": "assistant", "content": None, "refusal": "no", "content_parts": None},
        {"id": f"{name}-2", "role": "user", "content": "three", "refusal": None, "content_parts": None},
    ]
    status, page = wire(gateway, "GET", path)
    assert status == 200
    assert page == {
        "object": "list",
        "data": shown,
        "first_id": f"{name}-0",
        "last_id": f"{name}-2",
        "has_more": False,
    }
    # Not strict: the SDK's own model of a message allows the role assistant alone.
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none") as client:
        for order, numbers in (("asc", [0, 1, 2]), ("desc", [2, 1, 0])):
            found = client.chat.completions.messages.list(name, limit=1, order=order)  # type: ignore[arg-type]
            assert [message.id for message in found] == [f"{name}-{number}" for number in numbers]


@pytest.mark.parametrize(
    ("method", "path", "body", "param"),
    [
        ("POST", "", {"store": "yes"}, "store"),
        ("POST", "", {"store": True, "metadata": {"a": 1}}, "metadata"),
        ("POST", "", {"metadata": {"k" * 65: "v"}}, "metadata"),
        ("POST", "", {"metadata": {"k": "v" * 513}}, "metadata"),
        ("POST", "", {"metadata": {str(n): "v" for n in range(17)}}, "metadata"),
        ("POST", "", {"store": True, "messages": []}, "messages"),
        ("POST", "", {"store": True, "messages": ["hi"]}, "messages[0]"),
        ("POST", "", {"store": True, "messages": [{"role": "user", "content": 1}]}, "messages[0].content"),
        ("POST", "/c", {}, "metadata"),
        ("POST", "/c", {"metadata": {"a": 1}}, "metadata.a"),
        ("POST", "/c", {"metadata": {}, "model": "x"}, "model"),
        ("GET", "?limit=-1", None, "limit"),
        ("GET", "?order=up", None, "order"),
        ("GET", "?metadata=x", None, "metadata"),
    ],
)
def test_wrong_requests_name_the_field(gateway: Gateway, method: str, path: str, body: Any, param: str) -> None:
    if body is not None and not path:
        body = {"model": BASE, "messages": [{"role": "user", "content": "hi"}], **body}
    status, answer = wire(gateway, method, f"/chat/completions{path}", **({} if body is None else {"json": body}))
    assert (status, answer["error"]["param"]) == (400, param)


@pytest.mark.parametrize(
    "body",
    [b'{"x": "\\ud800"', b'{"x": "\xff"', b'{"x": ' + b"[" * 65 + b"]" * 65, b'{"x": ' + b"[" * 3000 + b"]" * 3000],
    ids=["surrogate", "utf8", "deep", "deeper"],
)
def test_a_body_that_could_not_be_shown_again_is_not_stored(gateway: Gateway, body: bytes) -> None:
    content = body + b', "store": true, "model": "fake-1", "messages": [{"role": "user", "content": "hi"}]}'
    status, _ = wire(
        gateway, "POST", "/chat/completions", content=content, headers={"content-type": "application/json"}
    )
    assert status == 400


def test_the_collection_takes_get_and_post(gateway: Gateway) -> None:
    response = gateway.http.delete("/v1/chat/completions")
    assert (response.status_code, response.headers["allow"]) == (405, "GET, POST")


@pytest.mark.parametrize("body", [{}, {"model": "another"}])
def test_azures_path_names_the_model(gateway: Gateway, body: dict[str, Any]) -> None:
    response = gateway.http.post(
        f"/openai/deployments/{BASE}/chat/completions?api-version=2024-10-21",
        json={**body, "messages": [{"role": "user", "content": "hi"}], "store": True},
    )
    assert response.status_code == 200, response.text
    assert response.json()["model"] == BASE
    assert gateway.client.chat.completions.retrieve(response.json()["id"]).model == BASE


def test_a_model_is_trained_on_what_was_stored(gateway: Gateway) -> None:
    for number in range(10):
        chat(gateway, f"one {number}", store=True, stream=number % 2 == 1, metadata={"set": "train"})
    chat(gateway, "<|im_end|>", store=True, metadata={"set": "train"})
    chat(gateway, "not this one", store=True)
    source = {"stored_completions": {"metadata": {"set": "train"}, "model": BASE}}
    status, file = wire(gateway, "POST", "/files", json={"purpose": "fine-tune", "tuneway": source})
    assert status == 200
    assert file["tuneway"] == {"examples": 10, "left_out": {"special_token": 1}}
    assert (file["filename"], file["purpose"]) == ("stored_completions.jsonl", "fine-tune")
    assert "expires_at" not in file
    shown = gateway.client.files.retrieve(file["id"])
    assert shown.to_dict() == {name: value for name, value in file.items() if name != "tuneway"}
    lines = gateway.client.files.content(file["id"]).read().splitlines()
    assert len(lines) == 10
    assert json.loads(lines[3]) == {
        "messages": [
            {"role": "system", "content": "Turn it round."},
            {"role": "user", "content": "one 3"},
            {"role": "assistant", "content": "3 one"},
        ]
    }
    job = gateway.client.fine_tuning.jobs.create(model=BASE, training_file=file["id"])
    give_up = time.monotonic() + 60
    while job.status not in ("succeeded", "failed") and time.monotonic() < give_up:
        time.sleep(0.05)
        job = gateway.client.fine_tuning.jobs.retrieve(job.id)
    assert (job.status, job.error) == ("succeeded", None)


def test_a_file_can_expire_and_have_a_name(gateway: Gateway) -> None:
    chat(gateway, "hi", store=True)
    body = {
        "purpose": "fine-tune",
        "tuneway": {"stored_completions": {}},
        "filename": "ä.jsonl",
        "expires_after": {"anchor": "created_at", "seconds": 3600},
    }
    file = wire(gateway, "POST", "/files", json=body)[1]
    assert (file["filename"], file["expires_at"]) == ("ä.jsonl", file["created_at"] + 3600)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "purpose"),
        ({"purpose": "fine-tune"}, "tuneway"),
        ({"purpose": "batch", "tuneway": {"stored_completions": {}}}, "purpose"),
        ({"purpose": "fine-tune", "tuneway": {"stored_completions": {}}}, "tuneway.stored_completions"),
        ({"purpose": "fine-tune", "tuneway": {"stored_completions": {}}, "filename": "a.csv"}, "filename"),
        ({"purpose": "fine-tune", "tuneway": {"stored_completions": {}}, "file": "x"}, "file"),
        (
            {"purpose": "fine-tune", "tuneway": {"stored_completions": {"limit": 50001}}},
            "tuneway.stored_completions.limit",
        ),
        (
            {"purpose": "fine-tune", "tuneway": {"stored_completions": {"ids": ["x"]}}},
            "tuneway.stored_completions.ids",
        ),
    ],
    ids=range(8),
)
def test_wrong_files_name_the_field(gateway: Gateway, body: Any, param: str) -> None:
    status, answer = wire(gateway, "POST", "/files", json=body)
    assert (status, answer["error"]["param"]) == (400, param)


def test_what_was_answered_survives_a_kill(start: Callable[..., Gateway], tmp_path: Path) -> None:
    gateway = start()
    name = chat(gateway, "one two", store=True).id
    for last in chat(gateway, "three four", store=True, stream=True):
        streamed = last.id
    gateway.process.kill()
    gateway.process.wait()
    again = start(SETTINGS, tmp_path)
    assert [one.id for one in again.client.chat.completions.list()] == [name, streamed]
    assert again.client.chat.completions.retrieve(streamed).choices[0].message.content == "four three"


def test_another_projects_completions_are_not_there(start: Callable[..., Gateway], tmp_path: Path) -> None:
    gateway = start()
    keys = [
        wire(
            gateway, "POST", "/tuneway/keys", json={"project": project, "name": "", "scopes": ["read", "tune", "chat"]}
        )
        for project in ("ours", "theirs")
    ]
    gateway.process.kill()
    gateway.process.wait()
    gateway = start(SETTINGS + "auth = true\n", tmp_path)
    mine, foreign = (gateway.client_with(key["key"]) for _, key in keys)
    messages: Any = [{"role": "user", "content": "hi"}]
    name = mine.chat.completions.create(model=BASE, messages=messages, store=True).id
    assert [one.id for one in mine.chat.completions.list()] == [name]
    assert list(foreign.chat.completions.list()) == []
    stored = foreign.chat.completions
    for ask in (stored.retrieve, stored.delete, stored.messages.list, lambda it: stored.update(it, metadata={})):
        with pytest.raises(openai.NotFoundError):
            ask(name)
    source = {"stored_completions": {"ids": [name]}}
    with pytest.raises(openai.BadRequestError):
        foreign.post("/files", body={"purpose": "fine-tune", "tuneway": source}, cast_to=object)
    assert mine.chat.completions.retrieve(name).to_dict()["metadata"] is None

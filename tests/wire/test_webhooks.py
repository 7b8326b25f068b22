"""Webhooks through the public door: a real receiver verifies them with the official SDK."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from queue import Queue
from threading import Event, Thread
from typing import Any

import openai
import pytest

from tests.wire.conftest import SETTINGS, Gateway, rows

WEBHOOKS = "/v1/tuneway/webhooks"
SECRET_PATH = "/hook-of-t0psecret"
WAIT = 60


class Receiver(ThreadingHTTPServer):
    """Answers each POST with the next of `script` (a status, or "cut"; 200 after the last) and keeps it."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, *script: int | str, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.script = list(script)
        self.received: Queue[tuple[bytes, dict[str, str]]] = Queue()
        self.go_on = Event()
        """What a receiver waits for whose script says "slow"."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}{SECRET_PATH}"

    def next(self) -> tuple[bytes, dict[str, str]]:
        return self.received.get(timeout=WAIT)


class _Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        answer = self.server.script.pop(0) if self.server.script else 200
        self.server.received.put((body, {name.lower(): value for name, value in self.headers.items()}))
        if answer == "slow":
            self.server.go_on.wait(WAIT)
            answer = 200
        if answer == "cut":
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        self.send_response(int(answer))
        self.send_header("location", self.server.url)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def receiving(*script: int | str, port: int = 0) -> Iterator[Receiver]:
    with Receiver(*script, port=port) as receiver:
        thread = Thread(target=receiver.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield receiver
        finally:
            receiver.go_on.set()
            receiver.shutdown()
            thread.join()


def created(gateway: Gateway, url: str, **more: Any) -> dict[str, Any]:
    answer = gateway.http.post(WEBHOOKS, json={"url": url, **more})
    assert answer.status_code == 200, answer.text
    made: dict[str, Any] = answer.json()
    return made


def deliveries(gateway: Gateway, webhook: dict[str, Any], state: str | None = None) -> list[dict[str, Any]]:
    params = {} if state is None else {"state": state}
    listed = gateway.http.get(f"{WEBHOOKS}/{webhook['id']}/deliveries", params=params)
    assert listed.status_code == 200
    found: list[dict[str, Any]] = listed.json()["data"]
    return found


def eventually(ask: Callable[[], Any]) -> Any:
    """What `ask` answers as soon as it is true: an end that another process stores gives no event to wait for."""
    deadline = time.monotonic() + WAIT
    while not (found := ask()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


def run_job(gateway: Gateway, content: bytes | None = None, epochs: int = 1) -> str:
    file = gateway.client.files.create(file=("train.jsonl", content or rows()), purpose="fine-tune")
    job = gateway.client.fine_tuning.jobs.create(
        model="fake-1",
        training_file=file.id,
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": epochs}}},
    )
    return job.id


def verified(webhook: dict[str, Any], received: tuple[bytes, dict[str, str]]) -> Any:
    """The event, as the official SDK verifies and reads it."""
    with openai.OpenAI(api_key="none", webhook_secret=webhook["secret"]) as client:
        return client.webhooks.unwrap(*received)


@pytest.fixture(autouse=True)
def tidy(request: pytest.FixtureRequest) -> Iterator[None]:
    """Deletes a test's webhooks from the gateway that the file shares."""
    yield
    if "gateway" in request.fixturenames:
        gateway = request.getfixturevalue("gateway")
        for webhook in gateway.http.get(WEBHOOKS).json()["data"]:
            gateway.http.delete(f"{WEBHOOKS}/{webhook['id']}")


def test_a_webhook_is_made_shown_and_deleted(gateway: Gateway) -> None:
    made = created(gateway, "http://127.0.0.1:9/a", name="ci", events=["fine_tuning.job.failed"])
    secret = made.pop("secret")
    assert secret.startswith("whsec_")
    assert made == {
        "object": "tuneway.webhook",
        "id": made["id"],
        "url": "http://127.0.0.1:9/a",
        "name": "ci",
        "events": ["fine_tuning.job.failed"],
        "created_at": made["created_at"],
    }
    other = created(gateway, "http://127.0.0.1:9/b")
    assert other["events"] == ["fine_tuning.job.succeeded", "fine_tuning.job.failed", "fine_tuning.job.cancelled"]
    assert other["secret"] != secret
    assert gateway.http.get(f"{WEBHOOKS}/{made['id']}").json() == made
    listed = gateway.http.get(WEBHOOKS).json()
    assert listed["data"][1] == made
    assert "secret" not in listed["data"][0]
    deleted = gateway.http.delete(f"{WEBHOOKS}/{made['id']}")
    assert deleted.json() == {"id": made["id"], "object": "tuneway.webhook", "deleted": True}
    for method, path in [("GET", ""), ("DELETE", ""), ("GET", "/deliveries"), ("POST", "/test")]:
        gone = gateway.http.request(method, f"{WEBHOOKS}/{made['id']}{path}")
        assert gone.status_code == 404
        assert gone.json()["error"]["param"] == "webhook_id"


def test_a_retried_create_answers_with_the_first_webhook(gateway: Gateway) -> None:
    first = created(gateway, "http://127.0.0.1:9/retried")
    again = gateway.http.post(
        WEBHOOKS, json={"url": "http://127.0.0.1:9/retried"}, headers={"x-stainless-retry-count": "1"}
    )
    assert again.json() == first
    assert created(gateway, "http://127.0.0.1:9/retried")["id"] != first["id"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "url"),
        ({"url": ""}, "url"),
        ({"url": "https://example.com/hook"}, "url"),
        ({"url": "http://10.0.0.1/"}, "url"),
        ({"url": "http://2130706433/"}, "url"),
        ({"url": "ftp://127.0.0.1/"}, "url"),
        ({"url": "http://a:b@127.0.0.1/"}, "url"),
        ({"url": "http://127.0.0.1/", "events": []}, "events"),
        ({"url": "http://127.0.0.1/", "events": ["fine_tuning.job.canceled"]}, "events.0"),
        ({"url": "http://127.0.0.1/", "secret": "mine"}, "secret"),
    ],
)
def test_refused(gateway: Gateway, body: dict[str, Any], param: str) -> None:
    answer = gateway.http.post(WEBHOOKS, json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text


def test_a_project_has_so_many_and_no_more(gateway: Gateway) -> None:
    for number in range(32):
        created(gateway, f"http://127.0.0.1:9/{number}")
    answer = gateway.http.post(WEBHOOKS, json={"url": "http://127.0.0.1:9/33"})
    assert answer.status_code == 400
    assert "32" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("end", "content"), [("succeeded", None), ("failed", b'{"messages": "none"}\n' * 12), ("cancelled", None)]
)
def test_the_end_of_a_job_is_announced(gateway: Gateway, end: str, content: bytes | None) -> None:
    with receiving() as one, receiving() as other, receiving() as unwilling:
        webhooks = [created(gateway, receiver.url) for receiver in (one, other)]
        rest = {"fine_tuning.job.succeeded", "fine_tuning.job.failed", "fine_tuning.job.cancelled"}
        created(gateway, unwilling.url, events=sorted(rest - {f"fine_tuning.job.{end}"}))
        job = run_job(gateway, content, epochs=40 if end == "cancelled" else 1)
        if end == "cancelled":
            gateway.client.fine_tuning.jobs.cancel(job)
        events = []
        for receiver, webhook in zip((one, other), webhooks, strict=True):
            received = receiver.next()
            event = verified(webhook, received)
            events.append(event)
            assert (event.object, event.type, event.data.id) == ("event", f"fine_tuning.job.{end}", job)
            assert received[1]["content-type"] == "application/json"
            assert received[1]["user-agent"].startswith("Tuneway/")
            (delivery,) = eventually(lambda webhook=webhook: deliveries(gateway, webhook, "delivered"))
            assert delivery == {
                "object": "tuneway.webhook.delivery",
                "id": received[1]["webhook-id"],
                "event_id": event.id,
                "type": event.type,
                "state": "delivered",
                "attempts": 1,
                "created_at": event.created_at,
                "next_attempt_at": None,
                "delivered_at": delivery["delivered_at"],
                "last_status": 200,
                "last_error": None,
                "data": event.to_dict(),
            }
        assert events[0].id == events[1].id
        assert gateway.client.fine_tuning.jobs.retrieve(job).status == end
        assert one.received.empty()
        assert unwilling.received.empty()
    assert SECRET_PATH not in gateway.log()


@pytest.mark.parametrize("failure", [500, "cut", 302])
def test_a_receiver_that_fails_first_is_asked_again(gateway: Gateway, failure: int | str) -> None:
    with receiving(failure) as receiver:
        webhook = created(gateway, receiver.url)
        run_job(gateway)
        first, second = receiver.next(), receiver.next()
        assert (first[0], first[1]["webhook-id"]) == (second[0], second[1]["webhook-id"])
        verified(webhook, second)
        (delivery,) = eventually(lambda: deliveries(gateway, webhook, "delivered"))
        assert (delivery["attempts"], delivery["last_status"], delivery["last_error"]) == (2, 200, None)
    assert SECRET_PATH not in gateway.log()


def test_a_receiver_that_is_gone_is_asked_once(gateway: Gateway) -> None:
    with receiving(410) as receiver:
        webhook = created(gateway, receiver.url)
        run_job(gateway)
        (delivery,) = eventually(lambda: deliveries(gateway, webhook, "failed"))
        assert (delivery["attempts"], delivery["last_status"], delivery["next_attempt_at"]) == (1, 410, None)


def test_a_slow_receiver_holds_up_its_own_deliveries_only(gateway: Gateway) -> None:
    with receiving("slow") as slow, receiving() as quick:
        created(gateway, slow.url)
        webhook = created(gateway, quick.url)
        jobs = {run_job(gateway), run_job(gateway)}
        slow.next()
        assert {verified(webhook, quick.next()).data.id for _ in jobs} == jobs
        assert slow.received.empty()


def test_a_test_event_is_sent_at_once(gateway: Gateway) -> None:
    with receiving(200, 503) as receiver:
        webhook = created(gateway, receiver.url)
        sent = gateway.http.post(f"{WEBHOOKS}/{webhook['id']}/test").json()
        assert (sent["state"], sent["type"], sent["last_status"]) == ("delivered", "tuneway.test", 200)
        event = verified(webhook, receiver.next())
        assert (event.type, event.id) == ("tuneway.test", sent["event_id"])
        failed = gateway.http.post(f"{WEBHOOKS}/{webhook['id']}/test").json()
        assert (failed["state"], failed["attempts"], failed["last_status"]) == ("failed", 1, 503)
        pages = [gateway.http.get(f"{WEBHOOKS}/{webhook['id']}/deliveries?limit=1").json()]
        pages.append(gateway.http.get(f"{WEBHOOKS}/{webhook['id']}/deliveries?limit=1&after={failed['id']}").json())
        assert [(page["data"], page["has_more"]) for page in pages] == [([failed], True), ([sent], False)]
        wrong = gateway.http.get(f"{WEBHOOKS}/{webhook['id']}/deliveries?after=wh_none")
        assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "after")


def test_the_command_line(gateway: Gateway) -> None:
    def tuneway(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "tuneway", "webhooks", *arguments, "--url", f"{gateway.url}/v1"]
        return subprocess.run(command, capture_output=True, text=True, timeout=60)

    with receiving(200, 500) as receiver:
        made = tuneway("create", receiver.url, "--event", "fine_tuning.job.failed", "--name", "ci")
        assert made.stdout.startswith("whsec_")
        webhook_id = made.stderr.partition(":")[0]
        assert webhook_id in tuneway("list").stdout
        assert "delivered" in tuneway("test", webhook_id).stdout
        failed = tuneway("test", webhook_id)
        assert (failed.returncode, "status 500" in failed.stderr) == (1, True)
        assert "tuneway.test" in tuneway("deliveries", webhook_id).stdout
        assert tuneway("delete", webhook_id).returncode == 0
        assert tuneway("delete", webhook_id).returncode == 1


def test_kill_9_loses_no_delivery(start: Callable[..., Gateway]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    first = start()
    webhook = created(first, f"http://127.0.0.1:{port}{SECRET_PATH}")
    job = run_job(first)
    (pending,) = eventually(lambda: [one for one in deliveries(first, webhook, "pending") if one["attempts"]])
    assert pending["last_status"] is None
    assert "127.0.0.1" in pending["last_error"]
    assert SECRET_PATH not in pending["last_error"]
    first.process.kill()
    first.process.wait()
    with receiving(port=port) as receiver:
        second = start()
        received = receiver.next()
        assert received[1]["webhook-id"] == pending["id"]
        assert verified(webhook, received).data.id == job
        (delivery,) = eventually(lambda: deliveries(second, webhook, "delivered"))
        assert delivery["id"] == pending["id"]


def test_a_delivery_that_was_under_way_is_sent_again(start: Callable[..., Gateway]) -> None:
    with receiving("slow") as receiver:
        first = start()
        webhook = created(first, receiver.url)
        run_job(first)
        sent = receiver.next()
        first.process.kill()
        first.process.wait()
        start()
        again = receiver.next()
        assert (again[0], again[1]["webhook-id"]) == (sent[0], sent[1]["webhook-id"])
        verified(webhook, again)


def test_another_projects_webhook_is_not_there(start: Callable[..., Gateway]) -> None:
    gateway = start()
    keys = {
        project: gateway.http.post(
            "/v1/tuneway/keys", json={"project": project, "name": "", "scopes": ["admin", "read", "tune"]}
        ).json()["key"]
        for project in ("mine", "theirs")
    }
    gateway.process.kill()
    gateway.process.wait()
    guarded = start(SETTINGS + 'auth = "on"\n')
    mine, theirs = (guarded.http_with(keys[project]) for project in ("mine", "theirs"))
    webhook = mine.post(WEBHOOKS, json={"url": "http://127.0.0.1:9/"}).json()
    for method, path in [("GET", ""), ("DELETE", ""), ("GET", "/deliveries"), ("POST", "/test")]:
        assert theirs.request(method, f"{WEBHOOKS}/{webhook['id']}{path}").status_code == 404
    assert theirs.get(WEBHOOKS).json()["data"] == []
    assert mine.get(f"{WEBHOOKS}/{webhook['id']}").status_code == 200
    assert guarded.http.get(WEBHOOKS).status_code == 401

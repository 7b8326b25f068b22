"""What Fireworks serves: models, deployments, LoRA add-ons and chat, and how all its resources are named and listed.

A tuned model can be called when it is merged into a deployment of its own, or loaded onto a deployment of its base that
takes add-ons. Errors have the form that the vendor's REST gateway gives a gRPC status; chat has an envelope of its own.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from datetime import UTC, datetime
from functools import partial
from http import HTTPStatus
from typing import Any

from tests.simulators import fireworks_bodies as bodies
from tests.simulators import openai_chat as talk
from tests.simulators.base import Answer, Handler, Refused, Request, Simulator, as_json
from tests.simulators.shapes import text

BASE = "accounts/fireworks/models/qwen3-8b"
SERVERLESS = "accounts/fireworks/models/gpt-oss-20b"
CODES = {400: 3, 401: 16, 403: 7, 404: 5, 409: 6, 429: 8, 500: 13, 501: 12, 503: 14, 504: 4}
"""gRPC's number for a status; a 400 may also be FAILED_PRECONDITION, which is 9."""
PRECONDITION = "FAILED_PRECONDITION"
UNSET = {"code": "OK", "message": ""}
Wire = dict[str, Any]


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


class FireworksServing(Simulator):
    """`deployments` is what bills by the minute until it is deleted, `deployed` says which models they serve."""

    def __init__(self, key: str = "fw-simulated", account: str = "acme") -> None:
        self.deployments: dict[str, Wire] = {}
        self.deployed: dict[str, Wire] = {}
        super().__init__(key)
        self.account = account
        self.pinned: dict[str, str] = {}
        self._looks: dict[str, int] = {}
        for name in (BASE, SERVERLESS):
            self.models[name] = {"name": name, "state": "READY", "kind": "HF_BASE_MODEL", "tunable": name == BASE}

    @property
    def base_url(self) -> str:
        return f"{self.url}/v1/accounts/{self.account}"

    def named(self, kind: str, id: str) -> str:
        return f"accounts/{self.account}/{kind}/{id}"

    def set_status(self, name: str, raw: str | None) -> None:
        """Shows this word as the state of a job or a deployment from now on; None lets it go on from where it was."""
        with self.lock:
            self.pinned.pop(name, None)
            if raw is not None:
                self.pinned[name] = raw

    def routes(self) -> Iterable[tuple[str, str, str, Handler]]:
        root = "/v1/accounts/{account}"
        place, loaded, model = f"{root}/deployments/{{id}}", f"{root}/deployedModels/{{id}}", f"{root}/models/{{id}}"
        return [
            ("POST", f"{root}/deployments", "create_deployment", self.create_deployment),
            ("GET", f"{root}/deployments", "deployments", partial(self.page, "deployments", self.deployments)),
            ("GET", place, "deployment", self.get_deployment),
            ("DELETE", place, "delete_deployment", self.delete_deployment),
            ("POST", f"{root}/deployedModels", "load_model", self.load_model),
            ("GET", f"{root}/deployedModels", "loaded_models", partial(self.page, "deployedModels", self.deployed)),
            ("GET", loaded, "loaded_model", self.get_loaded),
            ("DELETE", loaded, "unload_model", partial(self.delete, "deployedModels", self.deployed)),
            ("GET", f"{root}/models", "models", partial(self.page, "models", self.models)),
            ("GET", model, "model", self.get_model),
            ("DELETE", model, "delete_model", self.delete_model),
            ("POST", "/inference/v1/chat/completions", "chat", self.chat),
        ]

    def authorize(self, request: Request, operation: str) -> None:
        if request.seen.bearer != self.key:
            raise Refused(401, "The API key you provided is invalid.", code="UNAUTHORIZED")
        account = request.params.get("account", self.account)
        if account != self.account and not (account == "fireworks" and operation in ("model", "models")):
            raise Refused(403, "")  # as its gateway says it: without a word

    def refusal(self, refused: Refused, path: str) -> Answer:
        if path.startswith("/inference/"):
            code = refused.code or HTTPStatus(refused.status).name
            error = {"message": refused.message, "param": refused.param, "code": code, "type": "error"}
            return as_json({"error": error}, refused.status)
        number = 9 if refused.code == PRECONDITION else CODES.get(refused.status, 2)
        return as_json({"code": number, "message": refused.message, "details": []}, refused.status)

    # What all resources have.

    def find(self, kind: str, store: dict[str, Wire], request: Request) -> Wire:
        name = f"accounts/{request.params['account']}/{kind}/{request.params['id']}"
        if name not in store:
            raise Refused(404, f"{name} was not found")
        return store[name]

    def page(self, kind: str, store: dict[str, Wire], request: Request) -> Answer:
        """A page, by name."""
        query = request.seen.query
        for name in set(query) - {"pageSize", "pageToken", "readMask"}:
            raise Refused(501, f"The simulator does not know {name}")
        start = f"accounts/{request.params['account']}/{kind}/"
        found = [self.shown(store[name]) for name in sorted(store) if name.startswith(start)]
        try:
            first, size = int(query.get("pageToken") or "0", 16), int(query.get("pageSize") or 0)
        except ValueError:
            raise Refused(400, "invalid pageSize or pageToken") from None
        size = min(size if size > 0 else 50, 200)
        after = f"{first + size:x}" if len(found) > first + size else ""
        return as_json({kind: found[first : first + size], "nextPageToken": after, "totalSize": len(found)})

    def delete(self, kind: str, store: dict[str, Wire], request: Request) -> Answer:
        name = self.find(kind, store, request)["name"]
        del store[name]
        self._looks.pop(name, None)
        return as_json({})

    def new_name(self, kind: str, request: Request, store: dict[str, Wire]) -> str:
        """The name that its client chose, or a new one."""
        param = f"{kind[:-1]}Id"
        id = request.seen.query.get(param) or f"x{secrets.token_hex(4)}"
        text(pattern=bodies.ID)(id, param)
        name = self.named(kind, id)
        if name in store:
            raise Refused(409, f"{name} already exists")
        return name

    def shown(self, found: Wire) -> Wire:
        return found | {"state": self.pinned.get(found["name"], found["state"])}

    def is_second_look(self, name: str) -> bool:
        self._looks[name] = self._looks.get(name, 0) + 1
        return self._looks[name] >= 2

    # Serving.

    def get_model(self, request: Request) -> Answer:
        model = self.find("models", self.models, request)
        refs = [{k: v for k, v in at.items() if k != "model"} for at in self.places(model["name"])]
        return as_json(model | {"deployedModelRefs": refs})

    def delete_model(self, request: Request) -> Answer:
        if self.places(self.find("models", self.models, request)["name"]):
            raise Refused(400, "the model is deployed", code=PRECONDITION)
        return self.delete("models", self.models, request)

    def places(self, model: str) -> list[Wire]:
        return [found for found in self.deployed.values() if found["model"] == model]

    def deploy(self, model: str, deployment: str) -> Wire:
        name = self.named("deployedModels", f"{model.rpartition('/')[2]}-{secrets.token_hex(4)}")
        self.deployed[name] = {"name": name, "model": model, "deployment": deployment, "state": "DEPLOYING"}
        self.deployed[name] |= {"default": len(self.places(model)) == 1, "createTime": now(), "status": UNSET}
        return self.deployed[name]

    def create_deployment(self, request: Request) -> Answer:
        """A deployment of a LoRA merges it into its base; add-ons are for a deployment of a base."""
        asked = request.object()
        bodies.DEPLOYMENT(asked, "")
        name = self.new_name("deployments", request, self.deployments)
        model = self.models.get(asked["baseModel"])
        if model is None:
            raise Refused(404, f"{asked['baseModel']} was not found")
        if asked.get("enableAddons") and model["kind"] == "HF_PEFT_ADDON":
            raise Refused(400, "add-ons go onto a base model")
        made = {"name": name, "state": "CREATING", "status": UNSET, "createTime": now(), "replicaCount": 0}
        self.deployments[name] = {"minReplicaCount": 0, "maxReplicaCount": 1, "enableAddons": False} | asked | made
        if request.seen.query.get("disableAutoDeploy") != "true":
            self.deploy(asked["baseModel"], name)
        return as_json(self.deployments[name])

    def get_deployment(self, request: Request) -> Answer:
        found = self.find("deployments", self.deployments, request)
        if found["state"] == "CREATING" and self.is_second_look(found["name"]):
            found |= {"state": "READY", "replicaCount": 1}
            for place in self.places(found["baseModel"]):
                place["state"] = "DEPLOYED" if place["deployment"] == found["name"] else place["state"]
        return as_json(self.shown(found))

    def delete_deployment(self, request: Request) -> Answer:
        found = self.find("deployments", self.deployments, request)
        here = [at for at in self.deployed.values() if at["deployment"] == found["name"]]
        if request.seen.query.get("ignoreChecks") != "true" and any(at["model"] != found["baseModel"] for at in here):
            raise Refused(400, "add-ons are loaded", code=PRECONDITION)
        for at in here:
            del self.deployed[at["name"]]
        return self.delete("deployments", self.deployments, request)

    def load_model(self, request: Request) -> Answer:
        asked = request.object()
        bodies.LOADED(asked, "")
        model, place = self.models.get(asked["model"]), self.deployments.get(asked["deployment"])
        if model is None or place is None:
            raise Refused(404, "the model or the deployment was not found")
        if model.get("peftDetails", {}).get("baseModel") != place["baseModel"] or asked.get("serverless"):
            raise Refused(400, "the model is no LoRA of the deployment's base")
        if place["state"] != "READY" or not place["enableAddons"]:
            raise Refused(400, "the deployment is not ready for add-ons", code=PRECONDITION)
        if any(at["deployment"] == place["name"] for at in self.places(model["name"])):
            raise Refused(400, "the model is already deployed", code=PRECONDITION)
        return as_json(self.deploy(model["name"], place["name"]))

    def get_loaded(self, request: Request) -> Answer:
        found = self.find("deployedModels", self.deployed, request)
        ready = self.deployments[found["deployment"]]["state"] == "READY"
        if ready and found["state"] == "DEPLOYING" and self.is_second_look(found["name"]):
            found["state"] = "DEPLOYED"
        return as_json(self.shown(found))

    def chat(self, request: Request) -> Answer:
        body = request.object()
        bodies.CHAT(body, "")
        model, _, place = body["model"].partition("#")
        if self.deployments.get(model, {}).get("state") == "READY":
            model, place = self.deployments[model]["baseModel"], model
        live = [at for at in self.places(model) if at["state"] == "DEPLOYED"]
        if model != SERVERLESS and not any(at["deployment"] == place if place else at["default"] for at in live):
            raise Refused(404, "Model not found, inaccessible, and/or not deployed", param="model", code="NOT_FOUND")
        reply = ("tuned:" if "peftDetails" in self.models[model] else "base:") + talk.said(body)
        if body.get("stream"):
            return Answer(talk.stream(body, reply), headers={"content-type": "text/event-stream"})
        return Answer([talk.whole(body, reply)], headers={"content-type": "application/json"})

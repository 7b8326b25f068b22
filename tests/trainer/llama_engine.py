"""The real engine, asked for tokens and log-probabilities: llama.cpp on a unix socket."""

from __future__ import annotations

import http.client
import json
import socket
from pathlib import Path
from typing import Any

import xllamacpp  # type: ignore[import-untyped] # it ships no types


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("engine")
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.connect(self._path)


class Engine:
    """Serves one GGUF file from this process; `close` ends it."""

    def __init__(self, model: Path, folder: Path, context_length: int = 2048) -> None:
        parameters = xllamacpp.CommonParams()
        parameters.model.path = str(model)
        parameters.verbosity = -1
        parameters.warmup = False
        parameters.n_ctx = context_length
        parameters.n_parallel = 1
        parameters.cpuparams.n_threads = 2
        self._socket = str(folder / "engine.sock")
        parameters.hostnames = [self._socket]
        self._key = "k" * 32
        parameters.api_keys = [self._key]
        parameters.ui = False
        self._server = xllamacpp.Server(parameters)

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        connection = _Connection(self._socket)
        try:
            headers = {"Authorization": f"Bearer {self._key}", "Content-Type": "application/json"}
            connection.request("POST", path, json.dumps(body), headers)
            response = connection.getresponse()
            data = json.loads(response.read())
            assert response.status == 200, data
            return data
        finally:
            connection.close()

    def tokens(self, text: str) -> list[int]:
        """The engine's own tokens, special tokens parsed."""
        return list(self._post("/tokenize", {"content": text, "parse_special": True, "add_special": False})["tokens"])

    def next_log_probabilities(self, tokens: list[int], count: int) -> dict[int, float]:
        """The `count` likeliest next tokens after `tokens` and their natural log-probabilities."""
        # The bias decides what is sampled, not what is told: an end token or half a character would not be told at all.
        body: dict[str, Any] = {"prompt": tokens, "n_predict": 1, "n_probs": count, "cache_prompt": False}
        body["logit_bias"] = [[self.tokens("a")[0], 1000.0]]
        answer = self._post("/completion", body)
        return {entry["id"]: entry["logprob"] for entry in answer["completion_probabilities"][0]["top_logprobs"]}

    def close(self) -> None:
        del self._server

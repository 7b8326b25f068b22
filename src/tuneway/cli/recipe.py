"""The lines that repeat a quickstart by hand: curl, and Python with the official client."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneway.settings import DEFAULT_URL

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletionMessageParam

PYTHON = """\
from openai import OpenAI

client = OpenAI(base_url={url!r}, api_key="none")
train = client.files.create(file=open({train!r}, "rb"), purpose="fine-tune")  # {training_file}
valid = client.files.create(file=open({valid!r}, "rb"), purpose="fine-tune")  # {validation_file}
job = client.fine_tuning.jobs.create(
    model={base!r}, training_file=train.id, validation_file=valid.id, suffix={suffix!r}, seed={seed}{method}
)
print(client.fine_tuning.jobs.retrieve({job!r}).status)
answer = client.chat.completions.create(
    model={model!r},
    temperature=0,
    messages={messages!r},
)
print(answer.choices[0].message.content)"""


@dataclass(frozen=True, slots=True)
class Recipe:
    """The real names and ids of one quickstart, and the messages of one held-out row."""

    base: str
    training_file: str
    validation_file: str
    suffix: str
    seed: int
    hyperparameters: Mapping[str, int | float]
    job: str
    model: str
    messages: list[ChatCompletionMessageParam]

    def text(self, folder: Path, *, data: Path | None, url: str | None) -> str:
        """The lines; with `data`, they need a gateway on that state first, because the quickstart's own has ended."""
        at = url or DEFAULT_URL
        first = "" if data is None else f"\nServe this state:\n\n{_indented(_serve(data))}\n"
        return (
            f"{first}\nThe same steps with curl:\n\n{_indented(self._curl(folder, at))}\n"
            f"\nThe same steps in Python:\n\n{_indented(self._python(folder, at))}"
        )

    def _curl(self, folder: Path, url: str) -> str:
        job = {
            "model": self.base,
            "training_file": self.training_file,
            "validation_file": self.validation_file,
            "suffix": self.suffix,
            "seed": self.seed,
            **({"method": self._method()} if self.hyperparameters else {}),
        }
        chat = {"model": self.model, "temperature": 0, "messages": self.messages}
        return "\n".join(
            [
                *(
                    f"curl {url}/files -F purpose=fine-tune -F file=@{shlex.quote(str(folder / name))}"
                    for name in ("support_train.jsonl", "support_valid.jsonl")
                ),
                _post(f"{url}/fine_tuning/jobs", job),
                f"curl {url}/fine_tuning/jobs/{self.job}",
                f"curl {url}/fine_tuning/jobs/{self.job}/events",
                _post(f"{url}/chat/completions", chat),
            ]
        )

    def _method(self) -> dict[str, Any]:
        return {"type": "supervised", "supervised": {"hyperparameters": dict(self.hyperparameters)}}

    def _python(self, folder: Path, url: str) -> str:
        return PYTHON.format(
            url=url,
            train=str(folder / "support_train.jsonl"),
            valid=str(folder / "support_valid.jsonl"),
            training_file=self.training_file,
            validation_file=self.validation_file,
            base=self.base,
            suffix=self.suffix,
            seed=self.seed,
            method=f", method={self._method()!r}" if self.hyperparameters else "",
            job=self.job,
            model=self.model,
            messages=self.messages,
        )


def _serve(data: Path) -> str:
    serve = f"tuneway serve --data {shlex.quote(str(data))}"
    return f"make serve        # or: {serve}" if str(data) == ".quickstart" and Path("Makefile").exists() else serve


def _post(url: str, body: dict[str, Any]) -> str:
    return f"curl {url} -H 'Content-Type: application/json' -d {shlex.quote(json.dumps(body, ensure_ascii=False))}"


def _indented(text: str) -> str:
    return "\n".join("    " + line for line in text.splitlines())

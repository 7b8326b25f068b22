"""The same held-out rows, answered by the base and by the tuned model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneway.cli.exits import Failure
from tuneway.cli.watch import Display

if TYPE_CHECKING:
    from openai import OpenAI
    from openai.types.chat import ChatCompletionMessageParam

AT_ONCE = 2
"""Requests in flight: what one engine answers at the same time by default."""
LONGEST_ANSWER = 40
"""Tokens; the expected answers have fewer."""
CATEGORY = "category"


@dataclass(frozen=True, slots=True)
class Row:
    """A held-out row: the messages before the answer, and the answer as the object it must be."""

    messages: list[ChatCompletionMessageParam]
    expected: dict[str, Any]

    @property
    def text(self) -> str:
        """The customer's message."""
        return str(self.messages[-1].get("content"))


@dataclass(frozen=True, slots=True)
class Score:
    """Counts of rows: the category exactly right, the answer a JSON object, the object exactly right."""

    rows: int
    category: int
    valid_json: int
    all_keys: int


def read_rows(path: Path) -> list[Row]:
    """The rows of a chat-format JSONL file whose last message is a JSON object."""
    try:
        examples = [json.loads(line)["messages"] for line in path.read_text(encoding="utf-8").splitlines() if line]
        return [Row(messages[:-1], json.loads(messages[-1]["content"])) for messages in examples]
    except (OSError, ValueError, KeyError) as error:
        raise Failure(f"{path} is not a file of held-out rows: {error}") from error


def ask(client: OpenAI, model: str, rows: Sequence[Row], what: str, to: Display) -> list[str]:
    """The model's answers, in the order of the rows; `what` names them on the display."""
    answers = [""] * len(rows)
    pool = ThreadPoolExecutor(AT_ONCE)
    try:
        asked = {pool.submit(_answer, client, model, row): index for index, row in enumerate(rows)}
        for done, future in enumerate(as_completed(asked), 1):
            answers[asked[future]] = future.result()
            to.advance(what, done, len(rows))
    finally:
        # Without waiting: after Ctrl-C the gateway stops and with it the answers in flight.
        pool.shutdown(wait=False, cancel_futures=True)
    return answers


def score(rows: Sequence[Row], answers: Sequence[str]) -> Score:
    parsed = [parse(answer) for answer in answers]
    pairs = [(row.expected, found) for row, found in zip(rows, parsed, strict=True) if found is not None]
    return Score(
        rows=len(rows),
        category=sum(found.get(CATEGORY) == expected[CATEGORY] for expected, found in pairs),
        valid_json=len(pairs),
        all_keys=sum(found == expected for expected, found in pairs),
    )


def parse(answer: str) -> dict[str, Any] | None:
    """The answer as a JSON object; None when it is not exactly one."""
    try:
        found = json.loads(answer)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def shown(rows: Sequence[Row], number: int) -> list[int]:
    """The first row of each category, up to `number` of them."""
    first: dict[Any, int] = {}
    for index, row in enumerate(rows):
        first.setdefault(row.expected[CATEGORY], index)
    return sorted(first.values())[:number]


def _answer(client: OpenAI, model: str, row: Row) -> str:
    completion = client.chat.completions.create(
        model=model, messages=row.messages, temperature=0, max_tokens=LONGEST_ANSWER
    )
    return completion.choices[0].message.content or ""

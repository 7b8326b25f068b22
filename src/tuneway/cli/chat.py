"""`tuneway chat`: one answer, streamed, or a conversation."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from tuneway.cli.client import gateway
from tuneway.cli.options import Json, ModelName, Url
from tuneway.cli.output import document, note, wire

if TYPE_CHECKING:
    from openai import OpenAI
    from openai.types.chat import ChatCompletion, ChatCompletionMessageParam

Text = Annotated[
    str | None,
    typer.Argument(metavar="[MESSAGE]", help="What to say; without it, stdin or a conversation.", show_default=False),
]
System = Annotated[str | None, typer.Option("--system", help="The system message.")]
Temperature = Annotated[float | None, typer.Option("--temperature", min=0, max=2, help="0 takes the likeliest token.")]
MaxTokens = Annotated[int | None, typer.Option("--max-tokens", min=1, help="Longest answer, in tokens.")]


def chat(
    model: ModelName,
    message: Text = None,
    system: System = None,
    temperature: Temperature = None,
    max_tokens: MaxTokens = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Talk to a model: one MESSAGE, or a conversation."""
    if message is None and not sys.stdin.isatty():
        message = sys.stdin.read()
    if as_json and message is None:
        raise typer.BadParameter("--json needs a MESSAGE.")
    with gateway(url) as client:
        talk = Conversation(client, model, system, temperature, max_tokens)
        if message is None:
            talk.converse()
        elif as_json:
            document(wire(talk.complete(message)))
        else:
            talk.say(message)


class Conversation:
    """What was said so far, and the options of every answer."""

    def __init__(
        self, client: OpenAI, model: str, system: str | None, temperature: float | None, max_tokens: int | None
    ) -> None:
        from openai import omit

        self._create = client.chat.completions.create
        self._model = model
        self._temperature = omit if temperature is None else temperature
        self._max_tokens = omit if max_tokens is None else max_tokens
        self._messages: list[ChatCompletionMessageParam] = []
        if system:
            self._messages.append({"role": "system", "content": system})

    def converse(self) -> None:
        """Reads and answers until the end of input."""
        note(f"Talking to {self._model}. Ctrl-D ends the conversation.")
        while True:
            try:
                said = input("> ")
            except EOFError:
                return note("")
            if said.strip():
                self.say(said)

    def say(self, message: str) -> None:
        """Streams the answer to stdout; both messages join the conversation."""
        self._messages.append({"role": "user", "content": message})
        pieces = []
        with self._create(
            model=self._model,
            messages=self._messages,
            temperature=self._temperature,
            max_tokens=self._max_tokens,
            stream=True,
        ) as stream:
            for chunk in stream:
                for choice in chunk.choices:
                    if piece := choice.delta.content:
                        pieces.append(piece)
                        typer.echo(piece, nl=False)
        typer.echo()
        self._messages.append({"role": "assistant", "content": "".join(pieces)})

    def complete(self, message: str) -> ChatCompletion:
        """The answer as one object."""
        self._messages.append({"role": "user", "content": message})
        return self._create(
            model=self._model,
            messages=self._messages,
            temperature=self._temperature,
            max_tokens=self._max_tokens,
        )

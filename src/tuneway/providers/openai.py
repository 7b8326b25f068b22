"""OpenAI: its own shape, with the headers that choose an organisation and a project.

Takes new jobs until 2027-01-06. Facts: its API description of 2026-08-21 and recorded sessions; tested against a
simulator.
"""

from __future__ import annotations

from tuneway.providers.line import Line
from tuneway.providers.openai_compatible import BASE_URL, EVERYTHING, OpenAICompatible, Row
from tuneway.providers.vendor import Kind, Options, Vendor

ROW = Row(
    name="openai",
    base_url="https://api.openai.com/v1",
    hosts=("api.openai.com",),
    capabilities=EVERYTHING,
    bases=(
        "gpt-4.1-2025-04-14",
        "gpt-4.1-mini-2025-04-14",
        "gpt-4.1-nano-2025-04-14",
        "gpt-4o-2024-08-06",
        "gpt-4o-mini-2024-07-18",
        "gpt-3.5-turbo-0125",
        "o4-mini-2025-04-16",
    ),
    chat_limit="max_completion_tokens",
    importable=True,
)


def build(options: Options, line: Line) -> Vendor:
    key = options.need("api_key", r"[\x21-\x7e]{1,4096}")
    headers = {"authorization": f"Bearer {key}"}
    for name in ("openai_organization", "openai_project", "openai_beta"):
        value = options.get(name, r"[\x20-\x7e]{1,500}")
        if value is not None:
            headers[name.replace("_", "-")] = value
    return OpenAICompatible(ROW, options.get("base_url", BASE_URL) or ROW.base_url or "", headers, line)


KIND = Kind(
    name=ROW.name,
    build=build,
    hosts=ROW.hosts,
    options={
        "base_url": "Another URL than https://api.openai.com/v1, such as a regional one.",
        "openai_organization": "The organisation, where the key has several.",
        "openai_project": "The project, where the key has several.",
        "openai_beta": "The header OpenAI-Beta.",
    },
    secrets={"api_key": "The key, sk-…."},
    capabilities=ROW.capabilities,
)

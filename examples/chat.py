"""Stream a model's answer, with the `openai` package alone.

    export OPENAI_BASE_URL=http://127.0.0.1:8400/v1 OPENAI_API_KEY=none     # `tuneway serve` prints its address
    python examples/chat.py MODEL "Where is my Wren Router? I need it today."

The answer comes from MODEL under the system prompt of the support desk, which is what a model tuned on it expects.
"""

import json
import sys
from pathlib import Path

from openai import OpenAI

if len(sys.argv) != 3:
    sys.exit('usage: python chat.py MODEL "MESSAGE"')
model, message = sys.argv[1:]

with (Path(__file__).parent / "support_test.jsonl").open(encoding="utf-8") as rows:
    system_prompt = json.loads(rows.readline())["messages"][0]

chunks = OpenAI().chat.completions.create(
    model=model,
    messages=[system_prompt, {"role": "user", "content": message}],
    temperature=0,
    max_tokens=200,  # a base model that was not tuned may never end by itself
    stream=True,
)
for chunk in chunks:
    if chunk.choices:
        print(chunk.choices[0].delta.content or "", end="", flush=True)
print()

"""Fine-tune a model on the support desk and ask it about messages it has not seen, with the `openai` package alone.

    export OPENAI_BASE_URL=http://127.0.0.1:8400/v1 OPENAI_API_KEY=none     # `tuneway serve` prints its address
    python examples/finetune.py [BASE_MODEL]

The SDK reads both variables itself. On a gateway without authentication the key may be any word.
"""

import itertools
import json
import sys
import time
from pathlib import Path

from openai import OpenAI
from openai.types.fine_tuning import FineTuningJob

FOLDER = Path(__file__).parent


def upload(client: OpenAI, name: str) -> str:
    """Uploads one of the sample files and returns the id the server gave it."""
    return client.files.create(file=FOLDER / name, purpose="fine-tune").id


def follow(client: OpenAI, job_id: str) -> FineTuningJob:
    """Prints the job's events as they come; returns the job once it has ended."""
    seen: set[str] = set()
    while True:
        job = client.fine_tuning.jobs.retrieve(job_id)  # before the events, so that none is missed at the end
        newest_first = client.fine_tuning.jobs.list_events(job_id)  # iterating fetches older pages as needed
        new = list(itertools.takewhile(lambda event: event.id not in seen, newest_first))
        for event in reversed(new):
            print(event.message)
        seen.update(event.id for event in new)
        if job.status in ("succeeded", "failed", "cancelled"):
            return job
        time.sleep(2)


client = OpenAI()
job = client.fine_tuning.jobs.create(
    model=sys.argv[1] if len(sys.argv) > 1 else "smollm2-135m-instruct",
    training_file=upload(client, "support_train.jsonl"),
    validation_file=upload(client, "support_valid.jsonl"),
    suffix="support",
)
job = follow(client, job.id)
if job.fine_tuned_model is None:
    sys.exit(f"{job.id} {job.status}: {job.error.message if job.error else 'no model was made'}")

print(f"\n{job.fine_tuned_model} answers three held-out messages:")
for line in (FOLDER / "support_test.jsonl").read_text(encoding="utf-8").splitlines()[:3]:
    *question, expected = json.loads(line)["messages"]
    answer = client.chat.completions.create(model=job.fine_tuned_model, messages=question, temperature=0)
    print(f"\n{question[-1]['content']}")
    print(f"  model     {answer.choices[0].message.content}")
    print(f"  expected  {expected['content']}")

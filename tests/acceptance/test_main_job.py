"""Upload, fine-tune for real, chat with the result: as a new user does it."""

from __future__ import annotations

from pathlib import Path

import httpx2
import openai
import pytest

from tests.acceptance.gateway import (
    BASE,
    Gateway,
    ask,
    ended,
    events,
    eventually,
    jsonl,
    rows,
    succeeded,
    tune,
    upload,
)


def test_upload_tune_chat(gateway: Gateway) -> None:
    client = gateway.client
    training, validation = upload(client), upload(client, name="valid.jsonl")
    job = tune(client, training, epochs=50, validation_file=validation, suffix="colours", metadata={"team": "a"})
    assert job.status == "validating_files"
    assert job.method is not None
    assert len(events(client, job.id)) >= 2

    done = succeeded(client, job.id)
    assert done.fine_tuned_model is not None
    assert done.fine_tuned_model.startswith(f"ft:{BASE}:default:colours:")
    assert (done.seed, done.metadata, done.error) == (1, {"team": "a"}, None)
    assert done.hyperparameters.n_epochs == 50
    assert done.hyperparameters.learning_rate_multiplier == 1.0
    assert done.finished_at is not None
    assert done.trained_tokens is not None
    assert done.trained_tokens % 50 == 0

    messages = [event.message for event in events(client, job.id)]
    assert messages[0] == f"Created fine-tuning job: {job.id}"
    assert messages[1] == f"Validating training file: {training} and validation file: {validation}"
    order = [
        "Files validated, moving job to queued state",
        "Fine-tuning job started",
        f"New fine-tuned model created: {done.fine_tuned_model}",
        "The job has successfully completed",
    ]
    assert [message for message in messages if message in order] == order
    assert any("learning_rate_multiplier=1.0 (auto" in message for message in messages[:6])
    metrics = [event.data for event in events(client, job.id) if event.type == "metrics"]
    assert [data["step"] for data in metrics if isinstance(data, dict)] == list(range(1, 151))

    checkpoints = list(client.fine_tuning.jobs.checkpoints.list(job.id))
    assert [checkpoint.step_number for checkpoint in checkpoints] == [150, 147, 144]
    assert checkpoints[0].fine_tuned_model_checkpoint == done.fine_tuned_model
    assert checkpoints[0].metrics.full_valid_loss is not None
    assert checkpoints[1].fine_tuned_model_checkpoint.endswith(":ckpt-step-147")

    csv = client.files.content(done.result_files[0]).text.splitlines()
    assert csv[0] == "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy"
    assert len(csv) == 151
    result = client.files.retrieve(done.result_files[0])
    assert (result.purpose, result.status) == ("fine-tune-results", "processed")

    # It learned by heart what its base cannot know.
    assert ask(client, done.fine_tuned_model, "number 3") == "black"
    assert ask(client, done.fine_tuned_model, "number 10") == "lime"
    assert ask(client, BASE, "number 3") != "black"
    assert ask(client, checkpoints[2].fine_tuned_model_checkpoint) == "black"
    pieces = client.chat.completions.create(
        model=done.fine_tuned_model,
        messages=[{"role": "system", "content": "Say the colour."}, {"role": "user", "content": "number 3"}],
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    seen = list(pieces)
    assert "".join(piece.choices[0].delta.content or "" for piece in seen if piece.choices) == "black"
    assert seen[-1].usage is not None
    assert {piece.model for piece in seen} == {done.fine_tuned_model}

    names = [model.id for model in client.models.list()]
    assert names.count(done.fine_tuned_model) == 1
    client.models.delete(done.fine_tuned_model)
    with pytest.raises(openai.NotFoundError):
        ask(client, done.fine_tuned_model)


def test_unchanged_code_keeps_its_model_name(shared: Gateway) -> None:
    client = shared.client
    job = client.fine_tuning.jobs.create(model="gpt-4o-mini-2024-07-18", training_file=upload(client))
    assert job.model == BASE
    done = succeeded(client, job.id)
    assert done.hyperparameters.n_epochs == 8  # auto, for 12 examples
    assert done.hyperparameters.batch_size == 1
    assert isinstance(ask(client, "gpt-4o-mini-2024-07-18"), str)


@pytest.mark.parametrize(
    ("content", "code", "words"),
    [
        (jsonl(rows(7)), "invalid_n_examples", "has 7 example(s), but must have at least 10 examples"),
        (jsonl(rows(10)) + b"{not json\n", "invalid_file_format", "Example 11"),
        (jsonl(rows(10)) + b'{"messages": [{"content": "x"}]}\n', "invalid_file_format", "Example 11, message 1"),
        (jsonl(rows(10)) + b'{"messages": [], "x": 1}\n', "invalid_file_format", 'Example 11 contains an extra "x"'),
        (jsonl(rows(10)) + b"\xff\xfe\n", "invalid_file_format", "Example 11"),
    ],
)
def test_bad_data_fails_the_job_with_openais_words(shared: Gateway, content: bytes, code: str, words: str) -> None:
    client = shared.client
    job = tune(client, upload(client, content))
    done = ended(client, job.id)
    assert done.status == "failed"
    assert done.error is not None
    assert (done.error.code, done.error.param) == (code, "training_file")
    assert words in (done.error.message or "")
    assert done.fine_tuned_model is None
    assert not [event for event in events(client, job.id) if event.type == "metrics"]
    assert [event.level for event in events(client, job.id)][-1] == "error"


def test_an_example_beyond_the_context_is_cut_and_named(shared: Gateway) -> None:
    client = shared.client
    long = rows(12)
    long[4]["messages"][1]["content"] = "short"
    long[4]["messages"][2]["content"] = "very " * 3000
    job = tune(client, upload(client, jsonl(long)), epochs=1)
    succeeded(client, job.id)
    (warning,) = [event for event in events(client, job.id) if event.level == "warn"]
    assert "Example 5" in warning.message


def test_jobs_wait_in_line_and_a_cancelled_one_makes_room(gateway: Gateway) -> None:
    client = gateway.client
    first, second = tune(client, epochs=50), tune(client, epochs=1)
    trainer = gateway.trainer(first.id)
    place = eventually(
        lambda: [event.message for event in events(client, second.id) if "number 1 in the queue" in event.message]
    )
    assert len(place) == 1
    waiting = client.fine_tuning.jobs.retrieve(second.id).model_extra
    assert waiting is not None
    assert (waiting["tuneway"]["state"], waiting["tuneway"]["queue_position"]) == ("queued", 1)

    assert client.fine_tuning.jobs.cancel(first.id).status == "cancelled"
    cancelled = client.fine_tuning.jobs.retrieve(first.id)
    assert (cancelled.status, cancelled.finished_at, cancelled.fine_tuned_model) == ("cancelled", None, None)
    succeeded(client, second.id)
    assert gateway.run(first.id).owner() != trainer
    assert client.fine_tuning.jobs.retrieve(first.id).status == "cancelled"
    with pytest.raises(openai.BadRequestError, match="Job has already completed"):
        client.fine_tuning.jobs.cancel(first.id)


def test_a_file_deleted_while_its_job_runs_is_kept_until_the_end(gateway: Gateway) -> None:
    client = gateway.client
    file = upload(client)
    job = tune(client, file)
    client.files.delete(file)
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(file)
    done = succeeded(client, job.id)
    kept = [path for path in (gateway.data / "blobs").glob("??/*") if path.read_bytes() == jsonl(rows())]
    eventually(lambda: not [path for path in kept if path.exists()])
    assert client.files.content(done.result_files[0]).text


def test_the_fake_provider_needs_no_model_at_all(shared: Gateway) -> None:
    client = shared.client
    job = client.fine_tuning.jobs.create(model="fake-1", training_file=upload(client), suffix="demo")
    done = succeeded(client, job.id)
    assert done.fine_tuned_model is not None
    assert ask(client, done.fine_tuned_model, "one two three") == "three two one"
    pieces = client.chat.completions.create(
        model=done.fine_tuned_model, messages=[{"role": "user", "content": "one two three"}], stream=True
    )
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == "three two one"
    assert client.files.content(done.result_files[0]).text.startswith("step,")
    url = f"{shared.url}/chat/completions"
    twice = b'{"model": "fake-1", "model": "fake-1", "messages": [{"role": "user", "content": "x"}]}'
    for body in (twice, b'{"model": "fake-1"}', b'{"model": "fake-1", "messages": [], "tools": []}'):
        refused = httpx2.post(url, content=body, headers={"content-type": "application/json"})
        assert (refused.status_code, refused.json()["error"]["type"]) == (400, "invalid_request_error")


def test_the_gateway_serves_without_torch(shared: Gateway) -> None:
    maps = Path(f"/proc/{shared.pid}/maps")
    if not maps.exists():
        pytest.skip("only Linux shows what a process has loaded")
    assert "tokenizers" not in maps.read_text()
    assert "torch" not in maps.read_text()

"""The bodies that Together's API accepts, as its SDK (together 3.1.1) and its OpenAPI document have their fields.

The numbers are those of a middling model: the vendor has others for every base.
"""

from __future__ import annotations

from tests.simulators.openai_bodies import MESSAGE
from tests.simulators.shapes import (
    Check,
    anything,
    auto,
    boolean,
    choice,
    fields,
    integer,
    items,
    nullable,
    number,
    tagged,
    text,
)

LEAST_BATCH, MOST_BATCH, MOST_EPOCHS, MOST_RANK, MOST_RATE = 8, 32, 20, 64, 0.01

DPO: dict[str, Check] = dict.fromkeys(("dpo_normalize_logratios_by_length", "dpo_reference_free"), boolean)
DPO |= {"method": anything, "dpo_beta": number(above=0), "rpo_alpha": number(0), "simpo_gamma": number(0)}
SFT = fields({"method": anything, "train_on_inputs": auto(boolean)}, ["train_on_inputs"])
LORA_FIELDS: dict[str, Check] = {"type": anything, "lora_r": integer(1, MOST_RANK), "lora_alpha": integer(1)}
LORA_FIELDS |= {"lora_dropout": number(0, 0.999), "lora_trainable_modules": text(1)}
LORA = fields(LORA_FIELDS, ["lora_r", "lora_alpha"])
JOB_FIELDS: dict[str, Check] = {
    "training_file": text(1),
    "validation_file": text(),  # the SDK sends "" for none
    "model": text(1),
    "suffix": text(0, 40),
    "n_epochs": integer(1, MOST_EPOCHS),
    "n_checkpoints": integer(0, 100),
    "n_evals": integer(0, 100),
    "batch_size": lambda value, path: None if value == "max" else integer(1)(value, path),
    "learning_rate": number(above=0),
    "lr_scheduler": fields({"lr_scheduler_type": choice("linear", "cosine"), "lr_scheduler_args": anything}),
    "warmup_ratio": number(0, 1),
    "random_seed": nullable(integer(0)),
    "train_on_inputs": auto(boolean),
    "training_method": tagged("method", {"sft": SFT, "dpo": fields(DPO)}),
    "training_type": nullable(tagged("type", {"Full": fields({"type": anything}), "Lora": LORA})),
    "multimodal_params": fields({"train_vision": boolean}),
}
JOB_FIELDS |= dict.fromkeys(("packing", "early_stopping_enabled"), boolean)
JOB_FIELDS |= dict.fromkeys(("max_grad_norm", "weight_decay", "early_stopping_min_delta"), number(0))
COUNTS = "max_seq_length gradient_accumulation_steps early_stopping_patience early_stopping_warmup_evals"
WORDS = "wandb_key wandb_api_key wandb_base_url wandb_project_name wandb_name wandb_entity"
WORDS += " from_checkpoint from_hf_model hf_model_revision hf_api_token hf_output_repo_name"
JOB_FIELDS |= dict.fromkeys(COUNTS.split(), integer(0)) | dict.fromkeys(WORDS.split(), text())
JOB = fields(JOB_FIELDS, ["training_file"])
AUTOSCALING = fields({"min_replicas": integer(0), "max_replicas": integer(0)}, ["min_replicas", "max_replicas"])
ENDPOINT_FIELDS: dict[str, Check] = {"model": text(1), "hardware": text(1), "autoscaling": AUTOSCALING}
ENDPOINT_FIELDS |= {"display_name": text(), "state": choice("STARTED", "STOPPED"), "availability_zone": text()}
ENDPOINT_FIELDS |= dict.fromkeys(("disable_prompt_cache", "disable_speculative_decoding"), boolean)
ENDPOINT_FIELDS |= {"inactive_timeout": nullable(integer(0))}
ENDPOINT = fields(ENDPOINT_FIELDS, ["model", "hardware", "autoscaling"])
CHAT = fields({"model": text(1), "messages": items(MESSAGE, least=1)}, ["model", "messages"], closed=False)
UPLOAD_FIELDS: dict[str, Check] = {"purpose": choice("fine-tune"), "file_name": text(1, pattern=r".*\.jsonl")}
UPLOAD_FIELDS |= {"file_type": choice("jsonl"), "file": anything}
UPLOAD = fields(UPLOAD_FIELDS, ["purpose", "file_name", "file"])

"""The bodies that Fireworks' API accepts, field by field as its SDK has them (fireworks-ai 1.2.30).

What the SDK does not say is a guess: the bounds of a learning rate and of a batch of tokens.
"""

from __future__ import annotations

from tests.simulators.openai_bodies import MESSAGE
from tests.simulators.shapes import (
    Check,
    anything,
    boolean,
    choice,
    fields,
    integer,
    items,
    mapping,
    number,
    text,
)

ID = r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?"
LEAST_TOKENS = 1024

int64 = text(pattern=r"\d+")
"""What protobuf's JSON writes as a string."""

TRAINING: dict[str, Check] = {
    "baseModel": text(1),
    "warmStartFrom": text(1),
    "outputModel": text(1),
    "epochs": integer(1),
    "learningRate": number(above=0, most=0.01),
    "loraRank": integer(4, 64),
    "batchSize": integer(LEAST_TOKENS),  # tokens
    "batchSizeSamples": integer(1),
    "maxContextLength": integer(1),
    "gradientAccumulationSteps": integer(0),
    "learningRateWarmupSteps": integer(0),
    "optimizerWeightDecay": number(0),
    "samplerCheckpointSaveIntervalSteps": integer(0),
    "jinjaTemplate": text(),
    "region": text(),
}
COMMON: dict[str, Check] = {"dataset": text(1), "displayName": text(most=63), "wandbConfig": mapping(anything)}
COMMON |= {"rendererHuggingFaceRepoId": text(), "reservationTarget": text(), "useReservation": boolean}
COMMON |= dict.fromkeys(("awsS3Config", "azureBlobStorageConfig"), mapping(anything))
SFT_FIELDS = COMMON | TRAINING | {"evaluationDataset": text(1), "nodes": integer(0), "usePurpose": text()}
SFT_FIELDS |= dict.fromkeys(("earlyStop", "evalAutoCarveout", "isTurbo", "mtpEnabled", "mtpFreezeBaseModel"), boolean)
SFT_FIELDS |= {"mtpNumDraftTokens": integer(0), "metricsFileSignedUrl": text()}
BETA = fields({"beta": number(above=0, most=0.499), "refCacheConcurrency": integer(0), "refCacheBatchSize": integer(0)})
LOSS = fields({"method": choice("GRPO", "DAPO", "DPO", "ORPO", "GSPO_TOKEN"), "klBeta": number(), "dpo": BETA})
DPO_FIELDS = COMMON | {"lossConfig": LOSS, "trainingConfig": fields(TRAINING)}
JOBS = {
    "supervisedFineTuningJobs": fields(SFT_FIELDS, ["dataset"]),
    "dpoJobs": fields(DPO_FIELDS, ["dataset", "trainingConfig"]),
}
DATASET_FIELDS: dict[str, Check] = {
    "displayName": text(),
    "exampleCount": int64,
    "externalUrl": text(),
    "format": choice("FORMAT_UNSPECIFIED", "CHAT", "COMPLETION", "RL"),
    "userUploaded": fields({}),
    "sourceJobName": text(),
}
DATASET = fields(
    {"datasetId": text(pattern=ID), "dataset": fields(DATASET_FIELDS, ["userUploaded", "exampleCount"])},
    ["datasetId", "dataset"],
)
UPLOAD = fields({"filenameToSize": mapping(int64), "readMask": text()}, ["filenameToSize"])
DEPLOYMENT_FIELDS: dict[str, Check] = {
    "baseModel": text(1),
    "minReplicaCount": integer(0),
    "maxReplicaCount": integer(0),
    "acceleratorCount": integer(1),
    "autoscalingPolicy": mapping(anything),
    "placement": mapping(anything),
    "enableAddons": boolean,
}
DEPLOYMENT_FIELDS |= dict.fromkeys(("displayName", "description", "acceleratorType", "deploymentShape"), text())
DEPLOYMENT = fields(DEPLOYMENT_FIELDS | {"precision": text(), "maxContextLength": integer(0)}, ["baseModel"])
LOADED_FIELDS: dict[str, Check] = dict.fromkeys(("model", "deployment", "displayName", "description"), text())
LOADED = fields(LOADED_FIELDS | dict.fromkeys(("default", "public", "serverless"), boolean), ["model", "deployment"])
CHAT = fields({"model": text(1), "messages": items(MESSAGE, least=1)}, ["model", "messages"], closed=False)

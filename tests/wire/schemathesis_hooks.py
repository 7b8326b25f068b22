"""Loaded by schemathesis: names things that exist, so that what is generated gets further than a 404."""

import os
from typing import Any

import schemathesis

MODEL = "fake-1"
FILE = os.environ.get("FILE", "")
GENERATED = {"/chat/completions": {"model": MODEL}, "/fine_tuning/jobs": {"model": MODEL, "training_file": FILE}}


@schemathesis.hook
def before_call(context: schemathesis.HookContext, case: schemathesis.Case, kwargs: Any) -> None:
    for end, values in GENERATED.items():
        if case.operation.path.endswith(end) and isinstance(case.body, dict):
            # Strings only: a value of a wrong type is there to be refused.
            case.body.update({key: value for key, value in values.items() if isinstance(case.body.get(key), str)})
            if "messages" in case.body and not case.body.get("store"):
                case.body["store"] = True  # an answer that is not kept cannot be found again

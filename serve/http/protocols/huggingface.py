"""Hugging Face inference, as `huggingface_hub.InferenceClient(model=url).text_classification` sends it.

The client POSTs to the URL itself and takes element 0 of the answer, so even one text gets a list of lists.
https://huggingface.co/docs/inference-providers/tasks/text-classification
"""

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, Field

from serve.batching.engine import Engine
from serve.batching.request_errors import InvalidRequest
from serve.batching.ticket import Answer
from serve.contract.labels import ProblemType, scores_from_logits
from serve.encoder import Truncation
from serve.http.protocols.native import TextOrPair, as_input
from serve.http.protocols.schemas import LABEL_SCORE, array
from serve.http.routes import Call, Reply, Route, json_reply, one_by_one, plain_error

FUNCTIONS: dict[str, ProblemType] = {
    "softmax": "single_label_classification",
    "sigmoid": "multi_label_classification",
    "none": "regression",
}
"""Function -> the models whose own it is, as the pipeline of transformers chooses it."""


class Parameters(BaseModel, strict=True, extra="forbid"):
    """Optional parameters; what has no effect here is refused."""

    function_to_apply: Literal["softmax", "sigmoid", "none"] | None = Field(
        default=None,
        description="null: the model's own, hence calibrated probabilities or numbers; another: that of its logits.",
    )
    top_k: int | None = Field(default=None, ge=1, description="Labels to return; null for all.")
    truncation: Literal[True, False, "longest_first", "do_not_truncate"] | None = Field(
        default=None,
        description="false and do_not_truncate refuse what would not be read whole.",
    )
    max_length: int | None = Field(
        default=None, ge=1, description="Any length from the model's own on, which is what inputs are truncated to."
    )
    padding: Literal[True, False, "longest", "max_length", "do_not_pad"] | None = Field(
        default=None, description="Changes no answer."
    )


class InferenceRequest(BaseModel, strict=True):
    """Body of `POST /`."""

    inputs: str | TextOrPair | Annotated[list[str | TextOrPair], Field(min_length=1, fail_fast=True)]
    parameters: Parameters | None = None


def routes() -> list[Route]:
    """Return the routes of this protocol."""
    route = partial(Route, protocol="huggingface", error_body=plain_error)
    return [
        route(
            "POST",
            "/",
            _infer,
            "Classify, as Hugging Face inference does",
            description="A list of labels for each input, highest score first.",
            request=InferenceRequest,
            examples={
                "one text": {"inputs": "I loved it", "parameters": {"top_k": 1}},
                "a batch": {"inputs": ["I loved it", "I want my money back"]},
            },
            response=array(array(LABEL_SCORE)),
            response_example=[[{"label": "positive", "score": 0.98}, {"label": "negative", "score": 0.02}]],
            takes_time=True,
        )
    ]


async def _infer(call: Call) -> Reply:
    request: InferenceRequest = await call.read(InferenceRequest)
    given = request.inputs if isinstance(request.inputs, list) else [request.inputs]
    parameters = request.parameters or Parameters()
    engine = call.engine
    if parameters.max_length is not None and parameters.max_length < engine.facts.max_length:
        raise InvalidRequest(
            f"parameters.max_length: this server's model reads {engine.facts.max_length} tokens at a time; leave it "
            f"out, or start the server with --max_length {parameters.max_length}"
        )
    truncation: Truncation | None = "error" if parameters.truncation in (False, "do_not_truncate") else None
    inputs = [as_input(each) for each in given]
    answers = await engine.answers(inputs, timeout_s=call.timeout_s, truncation=truncation)
    return await call.write(partial(_reply, engine, answers, parameters), len(answers))


def _reply(engine: Engine, answers: Sequence[Answer], parameters: Parameters) -> Reply:
    own = engine.facts.classifier.problem_type
    kind = FUNCTIONS.get(parameters.function_to_apply or "", own)
    rows = (  # another function than the model's own knows no temperature, as in the pipeline
        each.scores if kind == own else scores_from_logits(np.array(each.logits), problem_type=kind).tolist()
        for each in answers
    )
    return json_reply(one_by_one(engine.ranked(each, parameters.top_k) for each in rows))

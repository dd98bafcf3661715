"""Text Embeddings Inference: `/predict`, `/tokenize`, `/info`, with its error bodies.

The nesting of its inputs says what they are: "a" and ["a"] are one text, ["a", "b"] is one pair,
[["a"], ["b", "c"]] is a batch. https://huggingface.github.io/text-embeddings-inference/
"""

from collections.abc import Sequence
from functools import partial
from importlib.metadata import version
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from serve.batching.engine import Engine
from serve.batching.request_errors import InvalidRequest, RequestError, TooLarge
from serve.batching.ticket import Answer
from serve.batching.token_listing import Token, as_rows
from serve.encoder import TextInput, Truncation, num_characters
from serve.http.protocols.schemas import LABEL_SCORE, array, value
from serve.http.routes import Call, Reply, Route, json_reply, one_by_one

TOKEN_FIELDS = ("id", "text", "special", "start", "stop")

TextOrPair = Annotated[list[str], Field(min_length=1, fail_fast=True, json_schema_extra={"maxItems": 2})]
"""`read_inputs` refuses more than two, and says what to send instead."""


class PredictRequest(BaseModel, strict=True):
    """Body of `POST /predict`."""

    inputs: str | TextOrPair | Annotated[list[TextOrPair], Field(min_length=1, fail_fast=True)]
    raw_scores: bool = Field(default=False, description="Logits instead of probabilities.")
    truncate: bool | None = Field(
        default=None, description="false refuses what would not be read whole; null reads it as in training."
    )
    truncation_direction: Literal["left", "right", "Left", "Right"] | None = Field(
        default=None, description="Side that loses tokens; null for the model's own."
    )


class TokenizeRequest(BaseModel, strict=True):
    """Body of `POST /tokenize`."""

    inputs: str | Annotated[list[str], Field(min_length=1, fail_fast=True)]
    add_special_tokens: bool = True


def routes() -> list[Route]:
    """Return the routes of this protocol; its /health and /metrics are in `serve.http.operations`."""
    route = partial(Route, protocol="tei", error_body=error_body)
    return [
        route(
            "POST",
            "/predict",
            _predict,
            "Classify, as Text Embeddings Inference does",
            description="A flat list of labels for one text or pair, highest score first; a list of lists for a batch.",
            request=PredictRequest,
            examples={
                "one text": {"inputs": "I loved it"},
                "a pair": {"inputs": ["A man sleeps.", "Someone is asleep."]},
                "a batch": {"inputs": [["I loved it"], ["I want my money back"]]},
            },
            response=array({"anyOf": [LABEL_SCORE, array(LABEL_SCORE)]}),
            response_example=[{"score": 0.98, "label": "positive"}, {"score": 0.02, "label": "negative"}],
            takes_time=True,
        ),
        route(
            "POST",
            "/tokenize",
            _tokenize,
            "Tokens of texts, without truncation",
            description="Offsets count characters of the cleaned text. All texts of a request together may be as long "
            "as one text on other routes.",
            request=TokenizeRequest,
            examples={"one text": {"inputs": "I loved it"}},
            response=array(array(value("object"))),
            response_example=[[{"id": 3866, "text": "loved", "special": False, "start": 2, "stop": 7}]],
            takes_time=True,
        ),
        route(
            "GET",
            "/info",
            _info,
            "The model and the server's limits",
            response={"type": "object", "required": ["model_id", "model_type", "max_input_length"]},
            response_example={"model_id": "tweet_sentiment", "provider": "CPUExecutionProvider"},
            statuses=(503,),
        ),
    ]


def error_body(error: RequestError) -> dict[str, str]:
    """Return an error as Text Embeddings Inference writes it."""
    return {"error": str(error), "error_type": error.kind}


async def _predict(call: Call) -> Reply:
    request: PredictRequest = await call.read(PredictRequest)
    inputs, is_batch = read_inputs(request.inputs)
    engine = call.engine
    if not engine.facts.takes_pairs:
        _require_single_texts(inputs, is_batch)
    answers = await engine.answers(inputs, timeout_s=call.timeout_s, truncation=_truncation(request))
    return await call.write(partial(_reply, engine, answers, request, is_batch), len(answers))


def _reply(engine: Engine, answers: Sequence[Answer], request: PredictRequest, is_batch: bool) -> Reply:
    predictions = one_by_one(engine.ranked(each.logits if request.raw_scores else each.scores) for each in answers)
    headers = {
        "x-compute-tokens": str(sum(each.num_tokens for each in answers)),
        "x-queue-time": str(round(1e3 * max(each.queue_s for each in answers))),
        "x-inference-time": str(round(1e3 * max(each.inference_s for each in answers))),
    }
    return json_reply(predictions if is_batch else predictions[0], headers=headers)


def read_inputs(inputs: str | list[str] | list[list[str]]) -> tuple[list[TextInput], bool]:
    """Return texts and pairs in their order, and whether they are a batch.

    Raises:
        InvalidRequest: a list of more than two texts, as someone used to another protocol would send a batch.
    """
    if isinstance(inputs, str):
        return [inputs], False
    is_batch = not isinstance(inputs[0], str)
    lists: Any = inputs if is_batch else [inputs]
    index = next((index for index, each in enumerate(lists) if len(each) > 2), None)
    if index is not None:
        raise InvalidRequest(
            f"inputs{f'.{index}' if is_batch else ''}: {len(lists[index])} texts in one list, which is one text or one "
            'pair in this protocol; for several texts send [["a"], ["b"], ["c"]]'
        )
    return [each[0] if len(each) == 1 else (each[0], each[1]) for each in lists], is_batch


async def _tokenize(call: Call) -> Reply:
    request: TokenizeRequest = await call.read(TokenizeRequest)
    texts = [request.inputs] if isinstance(request.inputs, str) else request.inputs
    engine = call.engine
    engine.require_within_limits(texts)
    num_chars, most = num_characters(tuple(texts)), engine.max_text_chars
    if num_chars > most:
        raise TooLarge(f"{num_chars:,} characters in all, but this route takes {most:,}; send fewer texts at a time")
    special = request.add_special_tokens

    def reply(lists: list[list[Token]]) -> Reply:
        return json_reply([as_rows(tokens, TOKEN_FIELDS) for tokens in lists])

    return await engine.lister.look_into(texts, reply, timeout_s=call.timeout_s, special=special)


async def _info(call: Call) -> Reply:
    engine = call.engine
    facts, limits = engine.facts, engine.batcher.limits
    labels = {str(number): label for number, label in enumerate(facts.labels)}
    return json_reply(
        {
            "model_id": facts.name,
            "model_sha": facts.version,
            "model_dtype": {"fp32": "float32", "fp16": "float16"}.get(facts.variant, facts.variant),
            "model_type": {
                "classifier": {
                    "id2label": labels,
                    "label2id": {label: number for number, label in enumerate(facts.labels)},
                }
            },
            "max_input_length": facts.max_length,
            "max_batch_tokens": limits.max_batch_tokens,
            "max_batch_requests": limits.max_batch_rows,
            "max_client_batch_size": engine.max_inputs,
            "auto_truncate": True,
            "tokenization_workers": 2,
            "version": version("rawloop"),
            "sha": None,
            "docker_label": None,
            "variant": facts.variant,
            "provider": facts.provider,
            "takes_pairs": facts.takes_pairs,
            "max_queued_tokens": limits.max_queued_tokens,
            "max_untokenized_inputs": limits.max_untokenized,
        }
    )


def _require_single_texts(inputs: Sequence[TextInput], is_batch: bool) -> None:
    """Refuse pairs: most often they are two texts from someone used to another protocol."""
    index = next((index for index, each in enumerate(inputs) if not isinstance(each, str)), None)
    if index is not None:
        where = f"inputs.{index}: " if is_batch else "inputs: "
        raise InvalidRequest(
            f'{where}["a", "b"] is one pair of texts in this protocol, but this model takes single texts; '
            'for two texts send [["a"], ["b"]]'
        )


def _truncation(request: PredictRequest) -> Truncation | None:
    if request.truncate is False:
        return "error"
    if request.truncation_direction is None:
        return None
    return "left" if request.truncation_direction.lower() == "left" else "right"

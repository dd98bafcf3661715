"""rawloop's own protocol: pairs and batches cannot be confused, and each input has its own outcome."""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

from pydantic import BaseModel, Field

from serve.answer import answer_fields, decision_facts, window_fields
from serve.batching.engine import Engine, ModelFacts
from serve.batching.request_errors import InvalidRequest, NotFound, RequestError
from serve.batching.ticket import Answer, Outcome
from serve.contract.errors import InputError
from serve.encoder import TextInput
from serve.http.explanation import explain
from serve.http.protocols.schemas import BOOLEAN, INTEGER, LABEL_SCORE, NUMBER, TEXT, array, record, value
from serve.http.routes import Call, Reply, Route, json_reply, one_by_one


class TextOrPair(BaseModel, strict=True, extra="forbid"):
    """One input: a text, or a pair of texts."""

    text: str
    text_pair: str | None = Field(default=None, description="Second text, for a model of pairs.")


class ClassifyRequest(BaseModel, strict=True, extra="forbid"):
    """One or more inputs."""

    inputs: list[str | TextOrPair] = Field(
        min_length=1, fail_fast=True, description="Each is a text, or an object with a text or a pair."
    )
    top_k: int | None = Field(default=None, ge=1, description="Labels to return for each input; null for all.")
    truncation: Literal["right", "left", "error"] | None = Field(
        default=None,
        description="Side on which an input that is too long loses tokens; error refuses what would not be read whole; "
        "null: as in training.",
    )
    logits: bool = Field(default=False, description="Also return logits, before temperature and softmax.")
    coverage: float | None = Field(
        default=None,
        description="Also return `label_set`: labels that hold the true one in at least this share of inputs (0.9); "
        "for numbers `interval`, which holds the true number.",
    )


class ExplainRequest(TextOrPair):
    """One input to explain."""

    label: str | None = Field(default=None, description="Label whose score is explained; null: the highest score's.")


def routes() -> list[Route]:
    """Return the routes of this protocol."""
    route = partial(Route, protocol="native", error_body=error_body)
    return [
        route(
            "POST",
            "/v1/classify",
            _classify,
            "Classify texts or pairs",
            description="Results are in the order of the inputs. An input without an answer has an `error` instead; if "
            "no input has an answer, the status is that of the first error.",
            request=ClassifyRequest,
            examples={
                "one text": {"inputs": ["I loved it"]},
                "a batch": {"inputs": ["I loved it", {"text": "I want my money back"}], "top_k": 1},
                "a pair": {"inputs": [{"text": "A man sleeps.", "text_pair": "Someone is asleep."}]},
            },
            response=CLASSIFY_SCHEMA,
            response_example=CLASSIFY_EXAMPLE,
            takes_time=True,
        ),
        route(
            "POST",
            "/v1/explain",
            _explain,
            "Explain one answer",
            description="The tokens, including those that truncation drops; and how much the score of the predicted "
            "label (or of `label`), or the number, falls when each word is left out (occlusion; Zeiler and Fergus "
            "2014). Long texts are cut into groups of words; words beyond what the model can see are not listed.",
            request=ExplainRequest,
            examples={"one text": {"text": "I loved it"}},
            response=EXPLAIN_SCHEMA,
            response_example=EXPLAIN_EXAMPLE,
            takes_time=True,
        ),
        route(
            "GET",
            "/v1/card",
            _card,
            "The current model's card: what was proved of it",
            content_type="text/markdown",
            statuses=(404, 503),
        ),
        route(
            "GET",
            "/v1/model",
            _model,
            "The current model",
            response={"type": "object"},
            response_example={"name": "tweet_sentiment", "version": "0c5ffee0c5ff", "labels": ["negative", "positive"]},
            statuses=(503,),
        ),
    ]


def error_body(error: RequestError) -> dict[str, Any]:
    """Return an error as this protocol writes it."""
    return {"error": {"type": error.kind, "message": str(error)}}


async def _classify(call: Call) -> Reply:
    request: ClassifyRequest = await call.read(ClassifyRequest)
    inputs = [as_input(each) for each in request.inputs]
    engine = call.engine
    if request.coverage is not None:
        try:
            answer_fields(engine.facts.classifier, [0.0] * len(engine.facts.labels), request.coverage)
        except InputError as error:
            raise InvalidRequest(str(error)) from error
    outcomes = await engine.classify(inputs, timeout_s=call.timeout_s, truncation=request.truncation, whole=False)
    num_answers = sum(1 + len(each.windows) if isinstance(each, Answer) else 1 for each in outcomes)
    return await call.write(partial(_reply, engine, outcomes, request), num_answers)


def _reply(engine: Engine, outcomes: Sequence[Outcome], request: ClassifyRequest) -> Reply:
    answers = [each for each in outcomes if isinstance(each, Answer)]
    body = {
        "model": _short_facts(engine.facts),
        "results": one_by_one(_result(engine, outcome, request) for outcome in outcomes),
        "queue_ms": round(1e3 * max((each.queue_s for each in answers), default=0.0), 3),
        "inference_ms": round(1e3 * max((each.inference_s for each in answers), default=0.0), 3),
    }
    if answers:
        return json_reply(body)
    first = next(each for each in outcomes if isinstance(each, RequestError))
    return json_reply(body | error_body(first), first.status, first.headers)


async def _explain(call: Call) -> Reply:
    request: ExplainRequest = await call.read(ExplainRequest)
    engine = call.engine
    explanation = await explain(engine, as_input(request), label=request.label, timeout_s=call.timeout_s)
    return json_reply({"model": _short_facts(engine.facts), **explanation})


async def _card(call: Call) -> Reply:
    if not call.engine.facts.card:
        raise NotFound("the bundle has no README.md")
    return Reply(call.engine.facts.card, 200, media_type="text/markdown; charset=utf-8")


async def _model(call: Call) -> Reply:
    facts = call.engine.facts
    classifier = facts.classifier
    return json_reply(
        {
            **_short_facts(facts),
            "provider": facts.provider,
            "labels": list(facts.labels),
            "inputs": [classifier.text_column, *([classifier.text_pair_column] if facts.takes_pairs else [])],
            "max_length": facts.max_length,
            "cleaning": classifier.cleaning,
            "truncation_side": classifier.truncation_side,
            "temperature": classifier.temperature,
            **decision_facts(classifier),
            "metrics": classifier.metrics,
            "examples": facts.examples,
            "drift": {name: shift._asdict() for name, shift in call.engine.live_texts.shifts().items()},
        }
    )


def as_input(given: str | TextOrPair) -> TextInput:
    """Return a text or pair as the engine takes it."""
    if isinstance(given, str):
        return given
    return given.text if given.text_pair is None else (given.text, given.text_pair)


def _short_facts(facts: ModelFacts) -> dict[str, str]:
    return {"name": facts.name, "version": facts.version, "variant": facts.variant}


def _result(engine: Engine, outcome: Outcome, request: ClassifyRequest) -> dict[str, Any]:
    if isinstance(outcome, RequestError):
        return error_body(outcome)
    fields = answer_fields(engine.facts.classifier, outcome.scores, request.coverage)
    head = fields
    if "value" not in fields:
        scores = engine.ranked(outcome.scores, request.top_k)
        head = {**scores[0], "scores": scores}
    read = window_fields(engine.facts.classifier, outcome.windows, request.top_k)
    result = {**head, "num_tokens": outcome.num_tokens, "truncated": outcome.truncated, **read, **fields}
    if request.logits:
        result["logits"] = dict(zip(engine.facts.labels, outcome.logits, strict=True))
    return result


WINDOW_FIELDS = {
    "sequence": value("integer", "0 for the text, 1 for the second of a pair."),
    "start": value("integer", "Its first character in that text, cleaned."),
    "stop": INTEGER,
    "value": NUMBER,
    "scores": array(LABEL_SCORE, "If it were all of the text."),
}
MODEL_FIELDS = record({"name": TEXT, "version": TEXT, "variant": TEXT})
RESULT_FIELDS = {
    "label": value("string", "Label with the highest score; absent for numbers."),
    "score": value("number", "Its probability."),
    "labels": array(TEXT, "Those given, best first."),
    "value": value("number", "The number, in the unit of the training rows."),
    "interval": array(NUMBER, "Its lowest and highest."),
    "abstained": value("boolean", "The score is too low to answer."),
    "label_set": array(TEXT, "Of the asked coverage."),
    "scores": array(LABEL_SCORE, "Highest first."),
    "num_tokens": value("integer", "Tokens that the model saw."),
    "truncated": value("boolean", "Whether it saw only part of the input."),
    "num_windows": value("integer", "Windows that a long text was read in; absent for models that truncate."),
    "windows": array(record(WINDOW_FIELDS, optional=("value", "scores")), "Of a text with several."),
    "logits": value("object") | {"additionalProperties": NUMBER},
    "error": record({"type": TEXT, "message": TEXT}),
}
CLASSIFY_SCHEMA = record(
    {
        "model": MODEL_FIELDS,
        "results": array(record(RESULT_FIELDS, "An answer, or an error in its place.", optional=RESULT_FIELDS)),
        "queue_ms": value("number", "Longest wait of an input for its batch."),
        "inference_ms": value("number", "Longest run of a batch."),
    },
    optional=("queue_ms", "inference_ms"),
)
CLASSIFY_EXAMPLE = {
    "model": {"name": "tweet_sentiment", "version": "0c5ffee0c5ff", "variant": "int8"},
    "results": [
        {
            "label": "positive",
            "score": 0.98,
            "scores": [{"label": "positive", "score": 0.98}, {"label": "negative", "score": 0.02}],
            "num_tokens": 5,
            "truncated": False,
        }
    ],
    "queue_ms": 0.05,
    "inference_ms": 1.1,
}
WORD_FIELDS = {
    "text": TEXT,
    "sequence": value("integer", "0 for the text, 1 for the second of a pair."),
    "start": value("integer", "Character of the text where it starts."),
    "stop": INTEGER,
    "drop": value("number", "How much score or number falls without it."),
}
TOKEN_FIELDS = {
    "id": INTEGER,
    "text": TEXT,
    "special": BOOLEAN,
    "sequence": value(["integer", "null"]),
    "kept": value("boolean", "False where truncation dropped it."),
}
EXPLAIN_SCHEMA = record(
    {
        "model": MODEL_FIELDS,
        "label": value("string", "What is explained; absent for numbers."),
        "score": NUMBER,
        "value": value("number", "The number."),
        "words": array(record(WORD_FIELDS)),
        "tokens": array(record(TOKEN_FIELDS)),
        "num_tokens": INTEGER,
        "truncated": BOOLEAN,
        "num_windows": RESULT_FIELDS["num_windows"],
        "windows": RESULT_FIELDS["windows"],
    },
    optional=("label", "score", "value", "num_windows", "windows"),
)
EXPLAIN_EXAMPLE = {
    "model": {"name": "tweet_sentiment", "version": "0c5ffee0c5ff", "variant": "int8"},
    "label": "positive",
    "score": 0.98,
    "words": [{"text": "loved", "sequence": 0, "start": 2, "stop": 7, "drop": 0.61}],
    "tokens": [{"id": 3866, "text": "loved", "special": False, "sequence": 0, "kept": True}],
    "num_tokens": 5,
    "truncated": False,
}

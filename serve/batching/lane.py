"""A thread that cleans and tokenizes requests, so that the event loop never waits for it."""

import dataclasses
import logging
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any

from serve.batching.request_errors import InferenceFailed, RequestError
from serve.batching.ticket import Encoder, Ticket
from serve.encoder import TextInput, Truncation

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class Submission:
    """A request as it was given to the batcher."""

    ticket: Ticket
    inputs: Sequence[TextInput]
    truncation: Truncation | None
    """What to do with inputs that are too long; None for the classifier's own side."""
    whole: bool
    """An input that cannot be encoded refuses all the others."""


class Lane:
    """Submissions in, encodings out, in order; `encoded` is called in the lane's thread.

    It gets one encoding or ItemError for each input. A RequestError that it raises refuses the request.
    """

    def __init__(self, name: str, encoder: Encoder, encoded: Callable[[Submission, Sequence[Any]], None]) -> None:
        self._encoder, self._encoded = encoder, encoded
        self._inbox: queue.SimpleQueue[Submission | None] = queue.SimpleQueue()
        self._num_in = 0  # written by the event loop alone
        self._num_out = 0  # written by the lane's thread alone
        threading.Thread(target=self._live, name=name, daemon=True).start()

    def __len__(self) -> int:
        """Return the number of inputs that wait for their tokens."""
        return self._num_in - self._num_out

    def put(self, submission: Submission) -> None:
        self._num_in += len(submission.inputs)
        self._inbox.put(submission)

    def stop(self) -> None:
        """End the thread after what it was given."""
        self._inbox.put(None)

    def _live(self) -> None:
        while (submission := self._inbox.get()) is not None:
            try:
                if not submission.ticket.closed:
                    self._encoded(submission, self._encoder.encode_each(submission.inputs, submission.truncation))
            except RequestError as error:
                submission.ticket.fail_from_thread(error)
            except BaseException as error:  # a lane that died would leave every later request waiting
                logger.error("tokenizing failed: %s", type(error).__name__)
                logger.debug("the failure, which may quote the text", exc_info=error)
                submission.ticket.fail_from_thread(InferenceFailed("the input could not be tokenized"))
            finally:
                self._num_out += len(submission.inputs)

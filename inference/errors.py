"""Errors of backends. Every SDK error is mapped to one of these, in its backend's module.

No message holds any of the text that was sent to the backend, so all of them may be stored and logged.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Self


class InferenceError(Exception):
    """Base class of the errors that a backend may raise.

    Attributes:
        default_message: the message of an error that is raised without one.
        code: short stable name, stored on the job.
        retryable: another attempt later may succeed.
        per_text: some texts of the call are at fault; the others may be tried without them.
        retry_after: seconds to wait, if the backend named any.
        indices: positions, in the call's list, of the texts at fault; empty if unknown.
        usage: tokens in and out of those calls that were answered nevertheless, if any.
        served_by: the candidate that was called; set by the Router.
    """

    default_message: ClassVar[str] = "The backend could not answer."
    code: ClassVar[str] = "inference_error"
    retryable: ClassVar[bool] = False
    per_text: ClassVar[bool] = False

    def __init__(
        self,
        message: str | None = None,
        *,
        retry_after: float | None = None,
        indices: Sequence[int] = (),
    ) -> None:
        super().__init__(message or self.default_message)
        self.retry_after = retry_after
        self.indices = tuple(indices)
        self.usage: tuple[int | None, int | None] | None = None
        self.served_by: Any = None

    def with_usage(self, input_tokens: int | None, output_tokens: int | None) -> Self:
        """The same error, with the tokens of calls that were answered and are paid for."""
        self.usage = (input_tokens, output_tokens)
        return self


class RateLimited(InferenceError):
    """Rate limit of the backend."""

    default_message = "The backend's rate limit is reached."
    code = "rate_limited"
    retryable = True


class LocalRateLimit(RateLimited):
    """Rate limit of the catalogue: no permit is free."""

    default_message = (
        "The configured limit of calls per minute is reached; the backend was not called."
    )
    code = "over_limit"


class BackendUnavailable(InferenceError):
    """The backend is unreachable, overloaded or failing."""

    default_message = "The backend does not answer now."
    code = "backend_unavailable"
    retryable = True


class ProbeInProgress(BackendUnavailable):
    """The circuit breaker is half-open, and another process runs the probe."""

    default_message = "The backend is unavailable; another process is probing it."


class Unauthorised(InferenceError):
    """Authentication or authorisation failed."""

    default_message = "The backend does not accept the key, or forbids the model."
    code = "backend_unauthorised"
    retryable = True


class Refused(InferenceError):
    """The backend refused the content of the call."""

    default_message = "The backend refused the call; another attempt will not help."
    code = "backend_refused"
    # Often for the content of one text: the other texts of the call are sent without it.
    per_text = True


class BadRequest(InferenceError):
    """Invalid input for this backend."""

    default_message = "The backend cannot process this input."
    code = "bad_request"
    per_text = True


class UnreadableFile(BadRequest):
    """A file that cannot be parsed."""

    default_message = (
        "The file cannot be opened: it is damaged, truncated or of another type than declared."
    )
    code = "unreadable_file"


class EncryptedFile(BadRequest):
    """A file that needs a password."""

    default_message = "The file is protected with a password; submit a copy without one."
    code = "encrypted_file"


class FileTooLarge(BadRequest):
    """A file over the limits of one job."""

    default_message = "The file has more bytes, pages or pixels than one job reads."
    code = "file_too_large"


class TooLong(InferenceError):
    """A text over the model's context."""

    default_message = "A text is longer than the model reads; nothing was truncated."
    code = "too_long"
    per_text = True


class BadVectors(InferenceError):
    """Invalid vectors from the backend."""

    default_message = (
        "The backend returned a vector that is not finite or not of the space's dimension."
    )
    code = "bad_vector"
    per_text = True


class InferenceFailed(InferenceError):
    """Unexpected error inside the model runtime."""

    default_message = "The model raised an unexpected error."
    code = "inference_failed"
    retryable = True
    per_text = True


class OutOfMemory(InferenceError):
    """The device ran out of memory."""

    default_message = "The device has too little memory even for one text; use a smaller model."
    code = "out_of_memory"
    retryable = True
    per_text = True


class NoAdequateModel(InferenceError):
    """No enabled model reaches the quality that the task needs."""

    default_message = "No enabled model is good enough for the task."
    code = "no_adequate_model"


class NoBackendAvailable(InferenceError):
    """No adequate model can be called now; the job waits without spending an attempt.

    Raised with one of the policy's reasons as its message.
    """

    default_message = "No model that is good enough can be called now; the job waits."

    code = "waits_for_backend"
    retryable = True


class SkippedModel(InferenceError):
    """A model is not called again: this attempt tried it in another pool."""

    default_message = "Every model that is good enough failed or is unavailable."
    code = "passed_over"
    retryable = True

    def __init__(self, reason: str = "unavailable") -> None:
        super().__init__()
        self.reason = reason


class BadAnswer(InferenceError):
    """Malformed response from the backend."""

    default_message = "The backend's response is malformed."
    code = "bad_answer"
    retryable = True


class CallCancelled(InferenceError):
    """The call was cancelled: its outcome would be refused."""

    default_message = "The call was cancelled."
    code = "abandoned"
    retryable = True


class ModelMissing(InferenceError):
    """The model is not installed."""

    default_message = "The model is not on this machine."
    code = "model_missing"


class DeviceMissing(InferenceError):
    """The configured device is not available."""

    default_message = "The configured device is not on this machine; set VESTRY_DEVICE."
    code = "device_missing"

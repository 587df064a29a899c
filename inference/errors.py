"""What a backend may raise. Every SDK error is mapped to one of these once, in its backend's module.

The first line of a class's docstring is its message: no message holds any of the text that was to be
embedded, so all of them may be stored and logged.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Self


class InferenceError(Exception):
    """The backend could not answer.

    Attributes:
        code: short stable name, stored on the job.
        retryable: another attempt later may succeed.
        per_text: some texts of the call are at fault, the others may be tried without them.
        retry_after: seconds the backend asked us to wait, where it said so.
        indices: places, in the call's list, of the texts known to be at fault; empty if unknown.
        usage: tokens in and out of the calls that were answered all the same, where any was.
        served_by: the candidate whose call it was, once the Router knows.
    """

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
        super().__init__(message or (type(self).__doc__ or "").partition("\n")[0])
        self.retry_after = retry_after
        self.indices = tuple(indices)
        self.usage: tuple[int | None, int | None] | None = None
        self.served_by: Any = None

    def with_usage(self, input_tokens: int | None, output_tokens: int | None) -> Self:
        """The same error, of calls that were answered and are paid for."""
        self.usage = (input_tokens, output_tokens)
        return self


class RateLimited(InferenceError):
    """The backend asked to be called less often."""

    code = "rate_limited"
    retryable = True


class LocalRateLimit(RateLimited):
    """Our own limit of calls a minute is reached; the backend was not called."""

    code = "over_limit"


class BackendUnavailable(InferenceError):
    """The backend does not answer now."""

    code = "backend_unavailable"
    retryable = True


class ProbeInProgress(BackendUnavailable):
    """The backend is away, and somebody is trying whether it is back."""


class Unauthorised(InferenceError):
    """The backend does not accept the key, or forbids the model."""

    code = "backend_unauthorised"
    retryable = True


class Refused(InferenceError):
    """The backend refused the call; asking again will not help."""

    code = "backend_refused"
    # Often for what one text says: its neighbours in the call are asked for without it.
    per_text = True


class BadRequest(InferenceError):
    """The backend cannot make sense of this input."""

    code = "bad_request"
    per_text = True


class UnreadableFile(BadRequest):
    """The file cannot be opened: it is damaged, cut off or of another kind than it says."""

    code = "unreadable_file"


class EncryptedFile(BadRequest):
    """The file is protected with a password; submit a copy without one."""

    code = "encrypted_file"


class FileTooLarge(BadRequest):
    """The file has more bytes, pages or pixels than one job reads."""

    code = "file_too_large"


class TooLong(InferenceError):
    """A text is longer than the model reads; nothing was cut off."""

    code = "too_long"
    per_text = True


class BadVectors(InferenceError):
    """The backend returned a vector that is not finite or not of the space's dimension."""

    code = "bad_vector"
    per_text = True


class InferenceFailed(InferenceError):
    """The model raised an unexpected error."""

    code = "inference_failed"
    retryable = True
    per_text = True


class OutOfMemory(InferenceError):
    """The device has too little memory even for one text at a time."""

    code = "out_of_memory"
    retryable = True
    per_text = True


class NoAdequateModel(InferenceError):
    """No enabled model is good enough for the task."""

    code = "no_adequate_model"


class NoBackendAvailable(InferenceError):
    """Nothing that is good enough can be called now; the job waits.

    Its message is the reason, one of the policy's words.
    """

    code = "waits_for_backend"
    retryable = True


class SkippedModel(InferenceError):
    """What is good enough failed, or is away."""

    code = "passed_over"
    retryable = True

    def __init__(self, reason: str = "unavailable") -> None:
        super().__init__()
        self.reason = reason


class BadAnswer(InferenceError):
    """The backend's answer makes no sense."""

    code = "bad_answer"
    retryable = True


class CallCancelled(InferenceError):
    """Nobody wants the answer any more."""

    code = "abandoned"
    retryable = True


class ModelMissing(InferenceError):
    """The model is not on this machine."""

    code = "model_missing"


class DeviceMissing(InferenceError):
    """The device asked for is not on this machine."""

    code = "device_missing"

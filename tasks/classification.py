"""The `classification` kind: the best of some labels, or all that fit, or none.

The model that serves a job decides the method: a built-in classifier has its own labels, an embedding
model compares vectors, a language model is held to a JSON schema whose enum is the labels. None of
them can answer with anything but one of the labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Final
from uuid import UUID

from inference.errors import CallCancelled, InferenceError
from inference.protocol import BuiltinClassifier
from inference.remote.egress import on_behalf_of
from inference.routing.policy import Candidate, RoutingRequest
from inference.routing.router import RerouteRequired, Router
from tasks.classification_by_llm import classify_by_llm
from tasks.classification_by_similarity import Classified, SimilarityClassifier
from tasks.classification_payload import LabelPlan, plan_of
from tasks.protocol import (
    BadPayload,
    Context,
    Failed,
    Job,
    Outcome,
    Succeeded,
    failure_of,
    outcome_of_error,
    served_of,
)
from vestry.lanes import Latency

NO_LABELS: Final = Failed(
    "no_labels",
    "the job has no labels: name some; only the tasks language and passage-reference define their own",
)

_Results = dict[UUID, Classified | Failed]


class ClassificationHandler:
    """Runs batches of classification jobs. Safe to call from several threads.

    Args:
        router: this process's Router.
    """

    def __init__(self, router: Router) -> None:
        self._router = router
        self._similarity = SimilarityClassifier()

    def __call__(self, batch: Sequence[Job], context: Context) -> Sequence[Outcome]:
        """One outcome per job, in order; jobs with equal routing requests are served together."""
        outcomes: dict[UUID, Outcome] = {}
        groups: dict[RoutingRequest, list[LabelPlan]] = {}
        for job in batch:
            try:
                groups.setdefault(job.routing_request, []).append(plan_of(job))
            except BadPayload as error:
                outcomes[job.id] = Failed("bad_payload", str(error))
        for request, plans in groups.items():
            outcomes.update(self._serve(request, plans, context))
        return [outcomes[job.id] for job in batch]

    def _serve(
        self, request: RoutingRequest, plans: Sequence[LabelPlan], context: Context
    ) -> dict[UUID, Outcome]:
        """Serve jobs of one routing request, as many in one call as the model takes."""
        outcomes: dict[UUID, Outcome] = {}
        # Those with labels first: an error of one text is about the first remaining job.
        plans = sorted(plans, key=lambda plan: not plan.labels)
        while remaining := [plan for plan in plans if plan.job.id not in outcomes]:
            try:
                routed = self._router.serve(request, partial(self._classify, remaining, context))
            except (InferenceError, RerouteRequired) as error:
                failed = outcome_of_error(error)
                outcomes.update({plan.job.id: failed for plan in _affected(error, remaining)})
                continue
            for job_id, result in routed.value.items():
                if isinstance(result, Failed):
                    outcomes[job_id] = result
                else:
                    served = served_of(routed, result.input_tokens, result.output_tokens)
                    outcomes[job_id] = Succeeded(result.result, served=served)
        return outcomes

    def _classify(
        self, plans: Sequence[LabelPlan], context: Context, model: Any, candidate: Candidate
    ) -> _Results:
        """Classify at least the first of some jobs; the kinds of the model select the method."""
        kinds = candidate.model.kinds
        if "embedding" not in kinds and "generation" not in kinds:
            return {plan.job.id: _by_builtin(model, plan) for plan in plans}
        unlabelled: _Results = {plan.job.id: NO_LABELS for plan in plans if not plan.labels}
        labelled = [plan for plan in plans if plan.labels]
        if not labelled:
            return unlabelled
        if "embedding" in kinds:
            urgent = any(plan.job.latency == Latency.INTERACTIVE for plan in labelled)
            results = self._similarity.classify(
                model, candidate.model.options, labelled, context, urgent=urgent
            )
            return unlabelled | results
        # One job per call of the Router: rate limits and circuit breakers count calls of a model.
        first = labelled[0]
        cancelled = partial(context.cancellation.is_lost, first.job.id)
        with on_behalf_of([first.job.id]):  # the request holds no other job's text
            choice = classify_by_llm(model, first, candidate.model.context, cancelled)
        result = first.result(choice.scores, all_chosen=True)
        classified = Classified(result, choice.input_tokens, choice.output_tokens)
        return unlabelled | {first.job.id: classified}


def _by_builtin(model: BuiltinClassifier, plan: LabelPlan) -> Classified | Failed:
    try:
        scores = model.classify(plan.text, plan.names)
    except InferenceError as error:
        return failure_of(error)
    return Classified(plan.result(scores, normalised=model.normalised(plan.text)))


def _affected(
    error: InferenceError | RerouteRequired, remaining: Sequence[LabelPlan]
) -> Sequence[LabelPlan]:
    """The jobs that an error fails: the first for an error of its text, else all of them."""
    single = isinstance(error, InferenceError) and (
        error.per_text or isinstance(error, CallCancelled)
    )
    return remaining[:1] if single else remaining

"""The `classification` kind: the best of some labels, or all that fit, or none.

What serves a job decides how: a built-in classifier has labels of its own, an embedding model compares
vectors, a language model is held to a JSON schema whose enum is the labels. None of them can answer
with anything but a label that there is to choose.
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
from tasks.outcomes import failure_of, outcome_of_error, served_of
from tasks.protocol import BadPayload, Context, Failed, Job, Outcome, Succeeded

INTERACTIVE: Final = "interactive"
NO_LABELS: Final = Failed(
    "no_labels",
    "there is nothing to choose from: give labels; only the tasks language and passage-reference bring "
    "their own",
)

_Made = dict[UUID, Classified | Failed]


class ClassificationHandler:
    """Runs batches of classification jobs. Safe to call from several threads.

    Args:
        router: of this process.
    """

    def __init__(self, router: Router) -> None:
        self._router = router
        self._similarity = SimilarityClassifier()

    def __call__(self, batch: Sequence[Job], context: Context) -> Sequence[Outcome]:
        """One outcome a job, in the batch's order; jobs that ask for the same go together."""
        outcomes: dict[UUID, Outcome] = {}
        alike: dict[RoutingRequest, list[LabelPlan]] = {}
        for job in batch:
            try:
                alike.setdefault(job.routing_request, []).append(plan_of(job))
            except BadPayload as error:
                outcomes[job.id] = Failed("bad_payload", str(error))
        for wish, plans in alike.items():
            outcomes.update(self._serve(wish, plans, context))
        return [outcomes[job.id] for job in batch]

    def _serve(
        self, wish: RoutingRequest, plans: Sequence[LabelPlan], context: Context
    ) -> dict[UUID, Outcome]:
        """Jobs of one wish: as many in one call as the model takes, until all have their outcome."""
        outcomes: dict[UUID, Outcome] = {}
        # Those with labels first: an error of one text is about the first that is waiting.
        plans = sorted(plans, key=lambda plan: not plan.labels)
        while waiting := [plan for plan in plans if plan.job.id not in outcomes]:
            try:
                answer = self._router.serve(wish, partial(self._classify, waiting, context))
            except (InferenceError, RerouteRequired) as error:
                failed = outcome_of_error(error)
                outcomes.update({plan.job.id: failed for plan in _concerned(error, waiting)})
                continue
            for job_id, made in answer.value.items():
                if isinstance(made, Failed):
                    outcomes[job_id] = made
                else:
                    served = served_of(answer, made.input_tokens, made.output_tokens)
                    outcomes[job_id] = Succeeded(made.result, served=served)
        return outcomes

    def _classify(
        self, plans: Sequence[LabelPlan], context: Context, model: Any, candidate: Candidate
    ) -> _Made:
        """Have at least the first of some jobs done by a model; what else it does decides how."""
        does = candidate.model.kinds
        if "embedding" not in does and "generation" not in does:
            return {plan.job.id: _by_itself(model, plan) for plan in plans}
        unlabelled: _Made = {plan.job.id: NO_LABELS for plan in plans if not plan.labels}
        labelled = [plan for plan in plans if plan.labels]
        if not labelled:
            return unlabelled
        if "embedding" in does:
            urgent = any(plan.job.latency == INTERACTIVE for plan in labelled)
            made = self._similarity.classify(
                model, candidate.model.options, labelled, context, urgent=urgent
            )
            return unlabelled | made
        # A call of a language model is one call to the Router too: limits and breakers count it.
        first = labelled[0]
        cancelled = partial(context.cancellation.is_lost, first.job.id)
        with on_behalf_of([first.job.id]):  # the text of no other job is in it
            chosen = classify_by_llm(model, first, candidate.model.context, cancelled)
        result = first.result(chosen.scores, all_given=True)
        taken = Classified(result, chosen.input_tokens, chosen.output_tokens)
        return unlabelled | {first.job.id: taken}


def _by_itself(model: BuiltinClassifier, plan: LabelPlan) -> Classified | Failed:
    try:
        scores = model.classify(plan.text, plan.names)
    except InferenceError as error:
        return failure_of(error)
    return Classified(plan.result(scores, normalised=model.normalised(plan.text)))


def _concerned(
    error: InferenceError | RerouteRequired, waiting: Sequence[LabelPlan]
) -> Sequence[LabelPlan]:
    """The jobs that an error is about: those of a batch of texts name theirs themselves."""
    one = isinstance(error, InferenceError) and (error.per_text or isinstance(error, CallCancelled))
    return waiting[:1] if one else waiting

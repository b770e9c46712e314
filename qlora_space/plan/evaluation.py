"""What is evaluated, and how often: as much as is worth its share of the run's time."""

import math
from dataclasses import dataclass

from qlora_space.core.facts import DatasetFacts
from qlora_space.core.intervals import MIN_ROWS
from qlora_space.core.options import Format, Score
from qlora_space.core.request import TrainingRequest
from qlora_space.core.wording import counted, percent, rough_duration
from qlora_space.plan.eval_cost import EvalCost, allowed_seconds
from qlora_space.plan.plan import Choices, Estimate

_MOST_EVALUATIONS, _FEWEST_EVALUATIONS, _FEWEST_EVAL_STEPS = 7, 2, 10


@dataclass(frozen=True)
class Evaluation:
    """`evaluations`: of held-out rows, first and last step included. `seconds`: of them and of the report's answers,
    `other_seconds` of all else in the run."""

    score: Score
    eval_steps: int
    evaluations: int
    num_scored_rows: int
    forgetting: bool
    seconds: float
    other_seconds: float


def choose_score(request: TrainingRequest, dataset: DatasetFacts, choices: Choices) -> Score:
    """By the expected answers; none where rows have none."""
    if dataset.format == Format.TEXT:
        return "none"
    if dataset.answers is None:
        return request.score or "exact"
    return choices.pick("score", request.score, dataset.answers.score, dataset.answers.why)


def choose_evaluation(
    request: TrainingRequest,
    cost: EvalCost,
    steps: int,
    other_seconds: float,
    choices: Choices,
    *,
    is_exact: bool,
) -> Evaluation:
    """Evaluations and scored answers that fit into the share of the run's time that evaluation may have.

    The first and the last evaluation are always there: they are the report's. Of what is left general questions get a
    third at most; then answers and the evaluations between get half each, and answers what evaluations do not need.
    `other_seconds`: of the run without evaluation.
    """
    once = cost.evaluation_seconds()
    left = allowed_seconds(request.eval_share, other_seconds) - _FEWEST_EVALUATIONS * once
    forgetting = _asks_general_questions(request, cost, left)
    general = cost.general_seconds() if forgetting else 0.0
    evaluations = _most_evaluations(cost, steps, left - general)
    default = max(_FEWEST_EVAL_STEPS, math.ceil(steps / (evaluations - 1)))
    eval_steps = request.eval_steps or default
    evaluations = num_evaluations(steps, eval_steps)
    left -= general + (evaluations - _FEWEST_EVALUATIONS) * once
    rows = _rows_within(cost, left)
    if request.score and not rows:
        rows = min(MIN_ROWS, cost.most_scored_rows)  # asked for by name
    found = Evaluation(
        score=cost.score,
        eval_steps=eval_steps,
        evaluations=evaluations if cost.num_eval_rows else 0,
        num_scored_rows=rows,
        forgetting=forgetting,
        seconds=evaluations * once + cost.answer_seconds(rows) + general,
        other_seconds=other_seconds,
    )
    _note(found, cost, request, choices, is_exact)
    return found


def _asks_general_questions(request: TrainingRequest, cost: EvalCost, left: float) -> bool:
    if request.forgetting is not None:
        return request.forgetting
    is_known = cost.model.source != "demo"  # whose language has nothing of them
    return is_known and cost.num_eval_rows > 0 and cost.general_seconds() <= left / 3


def _most_evaluations(cost: EvalCost, steps: int, left: float) -> int:
    once, most = cost.evaluation_seconds(), num_evaluations(steps, _usual_eval_steps(steps))
    rows = _rows_within(cost, left / 2) or _rows_within(cost, left)
    between = (left - cost.answer_seconds(rows)) / once if once else math.inf
    return _FEWEST_EVALUATIONS + int(min(max(between, 0), most - _FEWEST_EVALUATIONS))


def num_evaluations(steps: int, eval_steps: int) -> int:
    """Before training, every `eval_steps` and after the last step."""
    return 1 + math.ceil(steps / eval_steps)


def time_in_words(estimate: Estimate) -> str:
    """'3 min, 14 % of it evaluation'."""
    share = estimate.eval_seconds / estimate.seconds if estimate.seconds else 0.0
    words = rough_duration(estimate.seconds)
    return f"{words}, {percent(share)} of it evaluation" if share >= 0.005 else words


def _usual_eval_steps(steps: int) -> int:
    return max(_FEWEST_EVAL_STEPS, math.ceil(steps / (_MOST_EVALUATIONS - 1)))


def _rows_within(cost: EvalCost, seconds: float) -> int:
    """As many answers as fit; none where too few to tell anything would."""
    most = cost.most_scored_rows
    if not most or cost.answer_seconds(most) <= seconds:
        return most
    fewest = min(MIN_ROWS, most)
    fitting = [n for n in range(fewest, most) if cost.answer_seconds(n) <= seconds]
    return max(fitting, default=0)


def _note(
    found: Evaluation,
    cost: EvalCost,
    request: TrainingRequest,
    choices: Choices,
    is_exact: bool,
) -> None:
    """The reasons of what was chosen."""
    about = "" if is_exact else "about "
    why = f"{about}{found.evaluations} evaluations, the first before training"
    choices.pick(
        "eval_steps",
        request.eval_steps,
        found.eval_steps,
        why if found.evaluations else "no row is held out",
    )
    why = "answers before and after show what was forgotten"
    if not found.forgetting:
        why = "they would not fit into eval_share" if cost.num_eval_rows else "no row is held out"
        why = "the embedded base knows nothing of them" if cost.model.source == "demo" else why
    choices.pick("forgetting", request.forgetting, found.forgetting, why)
    if not cost.most_scored_rows:
        return
    fewest = min(MIN_ROWS, cost.most_scored_rows)
    if found.num_scored_rows:
        why = f"evaluation is about {_share(found.seconds, found)} of the time"
    else:
        more = _share(found.seconds + cost.answer_seconds(fewest), found)
        why = f"{counted(fewest, 'answer')} would make evaluation {more} of the time: raise eval_share for them"
    choices.pick("num_scored_rows", None, found.num_scored_rows, why)


def _share(seconds: float, found: Evaluation) -> str:
    return percent(seconds / (seconds + found.other_seconds))

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

    The first and the last evaluation are always there: they are the report's. What is left goes to answers and to
    evaluations between, half each, and what evaluations do not need to answers again. `other_seconds`: of the run
    without evaluation.
    """
    once = cost.evaluation_seconds()
    left = allowed_seconds(request.eval_share, other_seconds) - _FEWEST_EVALUATIONS * once
    half = _rows_within(cost, left / 2) or _rows_within(cost, left)
    between = (left - cost.answer_seconds(half)) / once if once else math.inf
    most = 1 + math.ceil(steps / _usual_eval_steps(steps))
    evaluations = _FEWEST_EVALUATIONS + int(min(max(between, 0), most - _FEWEST_EVALUATIONS))
    default = max(_FEWEST_EVAL_STEPS, math.ceil(steps / (evaluations - 1)))
    eval_steps = request.eval_steps or default
    evaluations = num_evaluations(steps, eval_steps)
    left -= (evaluations - _FEWEST_EVALUATIONS) * once
    rows = _rows_within(cost, left)
    if request.score and not rows:
        rows = min(MIN_ROWS, cost.most_scored_rows)  # asked for by name
    found = Evaluation(
        score=cost.score,
        eval_steps=eval_steps,
        evaluations=evaluations if cost.num_eval_rows else 0,
        num_scored_rows=rows,
        seconds=evaluations * once + cost.answer_seconds(rows),
        other_seconds=other_seconds,
    )
    _note(found, cost, request, choices, is_exact)
    return found


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

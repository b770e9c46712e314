"""How right an answer is beside the expected one: one score by the kind of answer, chosen by looking at them.

Answers are a model's and rows are a stranger's: every function here takes any text in bounded time and never raises.
"""

from qlora_space.core.scoring.choose import ChosenScore, choose_score
from qlora_space.core.scoring.measures import MEASURE_NAMES, SCORE_NAMES, measure_of, measured

__all__ = ["MEASURE_NAMES", "SCORE_NAMES", "ChosenScore", "choose_score", "measure_of", "measured"]

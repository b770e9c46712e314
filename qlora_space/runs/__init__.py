"""Runs on disk: the folder, its events, the view folded from them, and the queue."""

from qlora_space.core.atomic import write_atomically
from qlora_space.runs.advice import advice, best_step, ended_early, slowdown
from qlora_space.runs.folder import (
    RunFolder,
    create_run,
    delete_run,
    find_run,
    list_runs,
)
from qlora_space.runs.log import EventLog, read_events
from qlora_space.runs.publication import Publication, PushRequest, UnsentPush
from qlora_space.runs.quality import QUALITY_FILE, Quality, known_quality
from qlora_space.runs.queue import (
    OTHERS_RUN,
    QueuePosition,
    QueueSlot,
    is_machine_free,
    own_run,
    queue_positions,
)
from qlora_space.runs.report import (
    Answer,
    LossChange,
    Measure,
    Report,
    RowLosses,
    ScoreChange,
    Scores,
)
from qlora_space.runs.verdict import (
    Verdict,
    in_words,
    measure_name,
    measured_on,
    points_of,
    verdict,
)
from qlora_space.runs.view import RunView, fold, step_to_resume, view_of

__all__ = [
    "OTHERS_RUN",
    "QUALITY_FILE",
    "Answer",
    "EventLog",
    "LossChange",
    "Measure",
    "Publication",
    "PushRequest",
    "Quality",
    "QueuePosition",
    "QueueSlot",
    "Report",
    "RowLosses",
    "RunFolder",
    "RunView",
    "ScoreChange",
    "Scores",
    "UnsentPush",
    "Verdict",
    "advice",
    "best_step",
    "create_run",
    "delete_run",
    "ended_early",
    "find_run",
    "fold",
    "in_words",
    "is_machine_free",
    "known_quality",
    "list_runs",
    "measure_name",
    "measured_on",
    "own_run",
    "points_of",
    "queue_positions",
    "read_events",
    "slowdown",
    "step_to_resume",
    "verdict",
    "view_of",
    "write_atomically",
]

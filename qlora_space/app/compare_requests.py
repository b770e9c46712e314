"""What a comparison loads, for a run or for an adapter on the Hub: which base, which adapter, at which bits."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from qlora_space.core.adapter_facts import AdapterFacts
from qlora_space.core.comparison import (
    MOST_QUESTIONS,
    BaseRecipe,
    CompareOptions,
    CompareRequest,
    Question,
    Reply,
    reply_adapter,
)
from qlora_space.core.errors import RequestError, RunError
from qlora_space.core.facts import ModelFacts
from qlora_space.core.options import Format, Score
from qlora_space.core.scoring import choose_score
from qlora_space.core.wording import counted
from qlora_space.hub.download import PACKED_FOLDER
from qlora_space.places.service import Service
from qlora_space.runs import RunFolder


def request_for_run(
    run: RunFolder,
    questions: Sequence[Question],
    options: CompareOptions,
    others: Sequence[Path] = (),
) -> CompareRequest:
    """The run's adapter and `others`, prompts rendered as in training. Raises RunError if adapter or base are gone."""
    _check_questions(questions)
    plan = run.plan()
    run.check_base()
    return CompareRequest(
        base=plan.base,
        bits=plan.bits,
        adapter_folders=tuple(map(str, (run.adapter_after(options.step), *others))),
        strength=options.strength,
        packed_folder=str(run.packed_folder) if plan.is_low_bit else "",
        group_size=plan.group_size,
        cpu_offload=plan.cpu_offload,
        questions=tuple(questions),
        stop_token_ids=run.stop_token_ids(),
        format=Format(plan.dataset.format),
        sampling=options.sampling,
        score="exact" if plan.score == "none" else plan.score,
    )


def request_for_adapter(
    folder: Path,
    recipe: BaseRecipe,
    base: ModelFacts,
    questions: Sequence[Question],
    options: CompareOptions,
    quantized_folder: Path,
) -> CompareRequest:
    """An adapter that was fetched from the Hub, or that lies in a folder, with the base it names."""
    _check_questions(questions)
    packed = quantized_folder / "of-others"  # not there yet: packed from the base
    if recipe.comes_along:
        packed = folder / PACKED_FOLDER
    return CompareRequest(
        base=base,
        bits=recipe.bits,
        packed_folder=str(packed) if recipe.is_packed else "",
        group_size=recipe.group_size,
        adapter_folders=(str(folder.resolve()),),
        strength=options.strength,
        format=Format.MESSAGES,
        questions=tuple(questions),
        sampling=options.sampling,
        score=_score_of(questions),
    )


def _score_of(questions: Sequence[Question]) -> Score:
    """By the expected answers, as for a dataset."""
    found = choose_score([each.expected for each in questions if each.expected.strip()]).score
    return "exact" if found == "none" else found


def adapter_of_other_run(run: RunFolder, other: RunFolder) -> Path:
    """To stand beside that of `run`. Raises RunError unless both were trained on the same base, quantized alike."""
    plan, theirs = run.plan(), other.plan()
    packed = [each.packed_folder if each.plan().is_low_bit else None for each in (run, other)]
    same = (plan.base.id, plan.base.sha, plan.bits) == (
        theirs.base.id,
        theirs.base.sha,
        theirs.bits,
    )
    if not same or packed[0] != packed[1]:
        raise RunError(
            f"“{other.name()}” was trained on another base, or on other bits of it.",
            f"Choose a run on {plan.base.id} at {plan.bits} bits.",
        )
    return other.adapter_after(None)


def check_base_of(name: str, facts: AdapterFacts, run: RunFolder) -> None:
    """Raises RequestError for an adapter on another base than the run's, or with a packed base of its own."""
    base = run.plan().base
    if facts.base != base.id or facts.recipe.comes_along:
        raise RequestError(
            f"{name[:80]} is an adapter on {facts.base[:80]}, not on {base.id}.",
            "Choose one on the same base.",
        )


def _check_questions(questions: Sequence[Question]) -> None:
    """Raises RequestError."""
    if any(not question.prompt.strip() for question in questions):
        raise RequestError("The prompt is empty.", "Write something to ask.")
    if not 0 < len(questions) <= MOST_QUESTIONS:
        raise RequestError(
            f"There are {counted(len(questions), 'prompt')} to compare.",
            f"Give one to {MOST_QUESTIONS}.",
        )


def replies_to(
    request: CompareRequest, comparer: Service, token: str | None, gpu_token: str = ""
) -> Iterator[Reply]:
    """Of the process that holds the models. `gpu_token`: who pays, where GPUs are lent. Raises QloraSpaceError."""
    asked = request.model_dump(mode="json")
    message = {"request": asked, "token": token, "gpu_token": gpu_token}
    for reply in comparer.ask(message):
        yield reply_adapter.validate_python(reply)

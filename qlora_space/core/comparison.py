"""Questions to a base and to adapters on it at once, and the replies that stream back."""

import math
import statistics
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, model_validator

from qlora_space.core.facts import ModelFacts
from qlora_space.core.options import Bits, Format, Score
from qlora_space.core.scoring import MEASURE_NAMES, measure_of, measured
from qlora_space.core.wording import percent

Pane = Literal["base", "adapted", "adapted_2", "adapted_3", "adapted_4"]
PANES: tuple[Pane, ...] = ("base", "adapted", "adapted_2", "adapted_3", "adapted_4")
MOST_ADAPTERS = len(PANES) - 1
MOST_QUESTIONS = 200  # of one comparison


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Sampling(_Value):
    """How the next token is chosen. Temperature 0 is greedy: the same answer each time."""

    max_new_tokens: int = Field(default=256, ge=1, le=8192, description="Longest answer in tokens.")
    temperature: float = Field(
        default=0.0, ge=0, le=2, description="0: always the likeliest word. 1: varied."
    )
    top_p: float = Field(
        default=1.0, gt=0, le=1, description="Choose among the likeliest words up to this share."
    )
    seed: int = Field(default=0, ge=0, description="Same seed, same answer; both panes use it.")


class BaseRecipe(_Value):
    """How the base of a published adapter is loaded; stands in its record as `base`."""

    bits: Bits = 4
    group_size: Literal[128, 64, 32] = 64
    is_packed: bool = Field(default=False, description="By lowbit, not by bitsandbytes.")
    comes_along: bool = Field(default=False, description="Packed, in base/ of the repository.")


class CompareOptions(_Value):
    """What is compared with the base, and how it answers."""

    step: int | None = Field(
        default=None, ge=0, description="Checkpoint after this step; default: the run's adapter."
    )
    strength: float = Field(
        default=1.0,
        ge=0,
        le=2,
        description="Of the adapter. 0: the base, 1: as trained, 2: twice its change.",
    )
    others: tuple[str, ...] = Field(
        default=(),
        max_length=MOST_ADAPTERS - 1,
        description="Further adapters on the same base: ids of runs or on the Hub.",
    )
    sampling: Sampling = Sampling()


AS_TRAINED = CompareOptions()


Speaker = Literal["system", "user", "assistant"]


class Turn(_Value):
    """What was asked before, and the answer."""

    prompt: str
    answer: str


class Question(_Value):
    """What all panes are asked. `history`: earlier turns of each pane, or one history for all of them."""

    prompt: str
    system: str = ""
    expected: str = Field(default="", description="The answer that the data gives, if any.")
    history: tuple[tuple[Turn, ...], ...] = ()

    def turns_of(self, pane: int) -> tuple[Turn, ...]:
        """Before the prompt, in the pane of that number."""
        if not self.history:
            return ()
        return self.history[pane if len(self.history) > 1 else 0]

    def conversation(self, before: Sequence[Turn] = ()) -> list[tuple[Speaker, str]]:
        """Who says what, up to the prompt, after the turns `before` it."""
        said: list[tuple[Speaker, str]] = []
        if self.system:
            said.append(("system", self.system))
        for turn in before:
            said.extend([("user", turn.prompt), ("assistant", turn.answer)])
        return [*said, ("user", self.prompt)]


class CompareRequest(_Value):
    """Questions for the base and for adapters on it, with the same rendering, sampling and quantized base."""

    base: ModelFacts
    bits: Bits
    adapter_folders: tuple[str, ...] = Field(
        min_length=1,
        max_length=MOST_ADAPTERS,
        description="Folders on this machine, made by us, never user text.",
    )
    strength: float = Field(default=1.0, ge=0, le=2)
    packed_folder: str = Field(
        default="", description="Where a low-bit base is packed, made by us; '' for bitsandbytes."
    )
    group_size: int = 64
    cpu_offload: bool = Field(default=False, description="The 4-bit base stays in host memory.")
    questions: tuple[Question, ...] = Field(min_length=1, max_length=MOST_QUESTIONS)
    format: Format = Field(description="Rendered as in training; 'text': go on from the prompt.")
    stop_token_ids: tuple[int, ...] = Field(default=(), description="Ends of the trained answers.")
    sampling: Sampling = Sampling()
    score: Score = Field(default="exact", description="What makes an answer right; never 'none'.")

    @property
    def num_panes(self) -> int:
        return 1 + len(self.adapter_folders)

    @model_validator(mode="after")
    def _one_history_for_each_pane(self) -> Self:
        if any(len(q.history) not in (0, 1, self.num_panes) for q in self.questions):
            raise ValueError(f"a question has another number of histories than {self.num_panes}")
        return self


class Loading(_Value):
    """Progress before the first token."""

    kind: Literal["loading"] = "loading"
    text: str


class Chunk(_Value):
    """A piece of an answer to the only question."""

    kind: Literal["chunk"] = "chunk"
    pane: Pane
    text: str


class Answered(_Value):
    """Of several questions, how many all panes have answered."""

    kind: Literal["answered"] = "answered"
    done: int
    total: int


class TokenOdds(_Value):
    """A token of an adapted answer: its log-probability in nats without and with the adapter, before any sampling."""

    text: str
    base: float
    adapted: float
    rival: str = Field(default="", description="What the base would write here; '': the same.")


class PaneAnswer(_Value):
    """What one pane says. `expected_log_prob`: nats per token of the expected answer, if there is one."""

    text: str
    tokens: tuple[TokenOdds, ...] = Field(default=(), description="Of an adapted answer.")
    score: float | None = Field(
        default=None, description="What it is worth, 0 to 1; None: no answer is expected."
    )
    is_right: bool | None = Field(default=None, description="Whether it is worth all of it.")
    expected_log_prob: float | None = None

    @property
    def worth(self) -> float:
        """By the score; of an answer that was kept without one, whether it is right."""
        return self.score if self.score is not None else float(bool(self.is_right))

    @property
    def shift(self) -> float | None:
        """How much likelier the adapter makes its own answer, in nats per token."""
        if not self.tokens:
            return None
        return statistics.fmean(token.adapted - token.base for token in self.tokens)


class ComparedRow(Question):
    """A question with the answers of all panes, the base's first."""

    answers: tuple[PaneAnswer, ...] = Field(min_length=2)

    @property
    def base(self) -> PaneAnswer:
        return self.answers[0]

    @property
    def adapted(self) -> PaneAnswer:
        return self.answers[1]

    @property
    def turns(self) -> tuple[tuple[Turn, ...], ...]:
        """Of each pane, this one included."""
        return tuple(
            (*self.turns_of(pane), Turn(prompt=self.prompt, answer=answer.text))
            for pane, answer in enumerate(self.answers)
        )

    @property
    def gain(self) -> float | None:
        """How much likelier the adapter makes the expected answer, in nats per token; below 0: less likely."""
        base, adapted = self.base.expected_log_prob, self.adapted.expected_log_prob
        return None if base is None or adapted is None else adapted - base

    def values(self) -> dict[str, Any]:
        """For programs: everything, and the figures of the first adapter in plain names."""
        right = {f"{n}_is_right": a.is_right for n, a in zip(PANES, self.answers, strict=False)}
        right |= {f"{n}_score": a.score for n, a in zip(PANES, self.answers, strict=False)}
        texts = {name: a.text for name, a in zip(PANES, self.answers, strict=False)}
        figures = {"gain": self.gain, "shift": self.adapted.shift}
        return self.model_dump(mode="json") | texts | right | figures


def _judged(row: ComparedRow, score: Score) -> tuple[PaneAnswer, ...]:
    if not row.expected.strip():
        return row.answers
    worth = [measured(score, each.text, row.expected)[measure_of(score)] for each in row.answers]
    return tuple(
        each.model_copy(update={"score": value, "is_right": value == 1.0})
        for each, value in zip(row.answers, worth, strict=True)
    )


class Tally(_Value):
    """What the answers of each pane are worth by one measure, over the questions with an expected answer."""

    measure: str = "exact"
    num_rows: int
    num_right: tuple[int, ...]
    means: tuple[float, ...] = Field(description="Between 0 and 1.")

    @property
    def what(self) -> str:
        """'Right number, of 40'; 'ROUGE-L, mean of 40'."""
        return f"{MEASURE_NAMES[self.measure]}, {'' if self._is_counted else 'mean '}of {self.num_rows:,}"

    @property
    def figures(self) -> tuple[str, ...]:
        """Of each pane: how many are right, or the mean where an answer can be worth a part."""
        return (
            tuple(map(str, self.num_right)) if self._is_counted else tuple(map(percent, self.means))
        )

    @property
    def _is_counted(self) -> bool:
        pairs = zip(self.means, self.num_right, strict=True)
        return all(math.isclose(mean * self.num_rows, num, abs_tol=1e-6) for mean, num in pairs)


class Kept(_Value):
    """Before Done, where the comparison was kept with its run: `id` names it in an address."""

    kind: Literal["kept"] = "kept"
    id: str


class Done(_Value):
    """All whole answers. `same_base`: the logits of the first step in the base pane's batch row and those of a forward
    pass with the adapter off have the same sha256, and every token of the base's answers is as likely in a pass of the
    base alone, so all panes share one base."""

    kind: Literal["done"] = "done"
    rows: tuple[ComparedRow, ...] = Field(min_length=1)
    base_fingerprint: str
    same_base: bool
    prompt_tokens: int = Field(description="Of the first question.")
    tokens_per_second: float
    seconds: float
    score: Score = Field(default="exact", description="What makes an answer right.")

    @property
    def tally(self) -> "Tally | None":
        """None where no answer is expected."""
        known = [row.answers for row in self.rows if row.expected.strip()]
        if not known:
            return None
        panes = list(zip(*known, strict=True))
        return Tally(
            measure=measure_of(self.score),
            num_rows=len(known),
            num_right=tuple(sum(bool(each.is_right) for each in pane) for pane in panes),
            means=tuple(statistics.fmean(each.worth for each in pane) for pane in panes),
        )

    def judged(self, score: Score) -> Self:
        """With what each answer is worth by that score: what a report says of the same answers."""
        rows = [row.model_copy(update={"answers": _judged(row, score)}) for row in self.rows]
        return self.model_copy(update={"rows": tuple(rows), "score": score})

    @property
    def base(self) -> str:
        """The answer to the first question."""
        return self.rows[0].base.text

    @property
    def adapted(self) -> str:
        """The answer to the first question."""
        return self.rows[0].adapted.text


Reply = Annotated[Loading | Chunk | Answered | Kept | Done, Field(discriminator="kind")]
reply_adapter: TypeAdapter[Reply] = TypeAdapter(Reply)

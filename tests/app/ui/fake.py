"""Actions for tests of the page: the real ones on real run folders, with a scripted worker and no Hub."""

import math
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from typing_extensions import override

from qlora_space.app.actions import Actions
from qlora_space.app.rehearsals import Rehearsals
from qlora_space.core.comparison import (
    AS_TRAINED,
    MOST_QUESTIONS,
    PANES,
    Answered,
    Chunk,
    ComparedRow,
    CompareOptions,
    Done,
    Loading,
    PaneAnswer,
    Question,
    Reply,
    TokenOdds,
)  # fmt: skip
from qlora_space.core.errors import Conflict, DatasetError, HubError, ModelError, RunError
from qlora_space.core.events import (
    Cancelled,
    Checkpoint,
    Event,
    Failed,
    Finished,
    Gate,
    Metric,
    Note,
    Paused,
    Phase,
    QualityPoint,
    Sample,
    Started,
)
from qlora_space.core.facts import DatasetFacts, Hardware, ModelFacts, TokenLengths
from qlora_space.core.inspection import Change, Inspection, Problem, SampleRow, Token
from qlora_space.core.options import Format
from qlora_space.core.published_run import PublishedRun
from qlora_space.core.rehearsal import Rehearsal
from qlora_space.core.request import TrainingRequest
from qlora_space.core.settings import Settings
from qlora_space.hub import ModelHit, Published, Target
from qlora_space.hub.account import Account
from qlora_space.places.local import LocalBackend
from qlora_space.runs import (
    EventLog,
    LossChange,
    Publication,
    PushRequest,
    Quality,
    Report,
    RunFolder,
    RunView,
    Scores,
    create_run,
    view_of,
)
from qlora_space.runs.report import Answer, Measure, ScoreChange

LAPTOP = Hardware(
    name="CPU, 2 cores", device="cpu", memory_gib=23.4, free_gib=21.8, cpu_cores=2, disk_free_gib=90
)
GPU = Hardware(
    name="NVIDIA H200",
    device="cuda",
    memory_gib=139.8,
    free_gib=121.3,
    cpu_cores=16,
    disk_free_gib=400,
    price_per_hour_usd=5.0,
)
HOSTILE = "<img src=x onerror=window.hacked=1>${window.hacked=1}{{7*7}}"
PROMPTS = [
    "Mira keeps a lantern in the attic. Where is the lantern?",
    "What does the ferry to Olm carry on Fridays?",
    "Write the code name of the red kite.",
    "Who mends the clock in the square?",
]
_EXPECTED = ["In the attic.", "Salt and letters.", "RK-204", "Old Tam."]


def model(name: str, parameters: float, hidden: int, layers: int) -> ModelFacts:
    return ModelFacts(
        id=name,
        source="demo" if name == "demo" else "hub",
        sha="0" * 40,
        architecture="Qwen3ForCausalLM",
        model_type="qwen3",
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=hidden // 8,
        vocab_size=2048 if name == "demo" else 151_936,
        tie_word_embeddings=True,
        max_position_embeddings=1024 if name == "demo" else 40_960,
        parameters=int(parameters),
        linear_parameters=int(parameters * 0.85),
        file_bytes=int(parameters * 2),
        license="apache-2.0",
    )


BASES = {
    "demo": model("demo", 2.6e6, 256, 6),
    "Qwen/Qwen3-0.6B": model("Qwen/Qwen3-0.6B", 0.6e9, 1024, 28),
    "Qwen/Qwen3-8B": model("Qwen/Qwen3-8B", 8.2e9, 4096, 36),
    "Qwen/Qwen3-30B-A3B": model("Qwen/Qwen3-30B-A3B", 30.5e9, 2048, 48).model_copy(
        update={
            "architecture": "Qwen3MoeForCausalLM", "model_type": "qwen3_moe", "linear_parameters": 29_897_000_000,
            "num_experts": 128, "experts_per_token": 8, "expert_intermediate_size": 768,
            "expert_parameters": 28_991_029_248, "expert_sides": 48 * 128 * 6400,
        }
    ),
    "Qwen/Qwen3.5-9B": model("Qwen/Qwen3.5-9B", 9e9, 4096, 32).model_copy(
        update={
            "architecture": "Qwen3_5ForConditionalGeneration", "model_type": "qwen3_5_text",
            "state_carried": "Gated DeltaNet", "left_out_parameters": 450_000_000,
        }
    ),
    "Qwen/Qwen3-235B": model("Qwen/Qwen3-235B", 235e9, 8192, 94),
}  # fmt: skip
PROBLEMS = {
    "warned": Problem(
        code="duplicate_rows",
        severity="warning",
        rows=12,
        message="12 rows are there twice.",
        fix="Train on each row once, or the model learns them by heart.",
        change=Change(field="deduplicate", value="true"),
    ),
    "broken": Problem(
        code="empty_answer",
        severity="error",
        rows=31,
        message=f"31 rows have an empty answer, for example {HOSTILE}.",
        fix="Fill the column “completion”, or choose another one.",
    ),
    "guessed": Problem(
        code="guessed_columns",
        severity="error",
        rows=1000,
        message="The column “note” seems to be the answer.",
        fix="Confirm the columns, or map others.",
        change=Change(field="columns", value="prompt=prompt,completion=note"),
    ),
    "leaking": Problem(
        code="nothing_held_out",
        severity="error",
        rows=100,
        message="All 100 held-out rows are also trained on: none is left to measure on.",
        fix="Hold out some training rows instead.",
        change=Change(field="eval_fraction", value="0.1"),
    ),
    "leak": Problem(
        code="leak",
        severity="warning",
        rows=100,
        message="A held-out row is also trained on.",
        fix="It is taken out of the held-out rows.",
        change=Change(field="eval_fraction", value="0.1"),
    ),
}


def inspection(name: str, max_length: int = 512) -> Inspection:
    rows = tuple(
        {"prompt": p, "completion": e, (HOSTILE if name == "hostile" else "note"): HOSTILE}
        for p, e in zip(PROMPTS * 3, _EXPECTED * 3, strict=True)
    )
    lengths = TokenLengths(
        p50=41,
        p95=88,
        max=160,
        mean=45.0,
        truncated_fraction=0.0,
        trained_fraction=0.27,
        histogram=(2, 40, 180, 310, 220, 130, 60, 30, 14, 8, 4, 2),
    )
    facts = DatasetFacts(
        id=name,
        sha="1" * 40,
        format="prompt_completion",
        num_rows=1000,
        is_exact=True,
        num_bytes=184_000,
        lengths=lengths,
        license="cc0-1.0",
    )
    findings = (PROBLEMS["warned"],) if name in ("warned", "hostile") else ()
    findings += (PROBLEMS["broken"], PROBLEMS["warned"]) if name == "broken" else ()
    findings += (PROBLEMS["leak"], PROBLEMS["leaking"]) if name == "leaking" else ()
    findings += (PROBLEMS["guessed"],) if name == "guessed" else ()
    return Inspection(
        dataset=facts,
        format=Format.PROMPT_COMPLETION,
        reason="The columns are named prompt and completion.",
        columns=("prompt", "completion", HOSTILE if name == "hostile" else "note"),
        parts=("prompt", "completion", "system"),
        max_length=max_length,
        row_lengths=(*(20 + 14 * i * i // 100 for i in range(1, 32)), 160),
        mapping={"prompt": "prompt", "completion": "completion"},
        num_rows=1000,
        rows_looked_at=1000,
        lengths=lengths,
        problems=findings,
        samples=tuple(_sample(p, e) for p, e in zip(PROMPTS, _EXPECTED, strict=True)),
        preview=rows[:10],
        configs=("default", "long") if name == "warned" else (),
        splits=("train", "validation"),
        eval_split="validation",
    )


def _sample(prompt: str, answer: str) -> SampleRow:
    read = ["<|im_start|>", "user\n", *_words(prompt), "<|im_end|>", "\n", "<|im_start|>"]
    learned = [*_words(answer), "<|im_end|>"]
    tokens = [(t, False) for t in [*read, "assistant\n"]] + [(t, True) for t in learned]
    return SampleRow(
        tokens=tuple(
            Token(id=i, text=t, trained=on, special=t.startswith("<|"))
            for i, (t, on) in enumerate(tokens)
        ),
        truncated=False,
    )


def _row(question: Question, options: CompareOptions, num_others: int) -> ComparedRow:
    """The base rambles; an adapter knows the answers, and is the base at strength 0."""
    base = "The lantern is a kind of light, and a light is a kind of lantern, and so on."
    adapted = question.expected or ("And so it is." if question.history else "In the attic.")
    if "hostile" in question.prompt:
        adapted = f"In the attic.\n{HOSTILE}"
    adapted = adapted if options.strength else base
    odds = [
        TokenOdds(text=word, base=-4.0, adapted=-0.1, rival="" if i else "The")
        for i, word in enumerate(_words(adapted))
    ]
    knows, likely = bool(question.expected), (-3.2, -0.07 * len(question.prompt))
    answers = [
        PaneAnswer(
            text=text,
            tokens=tokens,
            expected_log_prob=likely[bool(tokens)] if knows else None,
        )
        for text, tokens in ((base, ()), *[(adapted, tuple(odds))] * (1 + num_others))
    ]
    return ComparedRow(**dict(question), answers=tuple(answers))


def _words(line: str) -> list[str]:
    return [(" " if i else "") + word for i, word in enumerate(line.split())]


class ScriptedBackend(LocalBackend):
    """A thread in place of the worker process: it writes the events that a worker would write."""

    def __init__(self, step_seconds: float, num_steps: int) -> None:
        super().__init__()
        self.step_seconds, self.num_steps = step_seconds, num_steps
        self.num_started = 0
        self.stop_fails = ""  # what a stop is refused with
        self.renewed: list[tuple[set[str], str | None]] = []  # runs, and the token for them

    @override
    def start(self, run: RunFolder, token: str | None) -> None:
        self.num_started += 1
        run.clear_control_requests()
        step = run.resume_step() or 0
        threading.Thread(target=self.work, args=(run, "finished", None, step), daemon=True).start()

    @override
    def renew_token(self, run_ids: Iterable[str], token: str | None) -> None:
        self.renewed.append((set(run_ids), token))

    @override
    def view(self, run: RunFolder) -> RunView:
        return view_of(run)

    @override
    def stop(self, run: RunFolder, keep: bool) -> None:
        if self.stop_fails:
            raise RunError(self.stop_fails, "Free some space.")
        run.ask_to_stop(keep)

    def work(
        self, run: RunFolder, ending: str = "finished", upto: int | None = None, after: int = 0
    ) -> None:
        """The events of one attempt, at `step_seconds` a step."""
        log = EventLog(run.events_file)
        for event in script(self.num_steps, ending, upto, after):
            if request := run.stop_request():
                keeps = request == "keep"
                _finish(run, keeps)
                end = Finished(step=1, stopped_by_hand=True) if keeps else Cancelled(step=1)
                log.append(end)
                return
            if event.kind == "finished":
                _finish(run, True)
            log.append(event)
            if event.kind in ("metric", "phase"):
                time.sleep(self.step_seconds)


class FakeActions(Actions):
    """The real Actions with scripted parts where it would need a process, the Hub or minutes.

    pyright checks every override against the method that it replaces.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        user: Account | None = None,
        step_seconds: float = 0.3,
        num_steps: int = 120,
    ) -> None:
        super().__init__(settings)
        self.machine, self.user = LAPTOP, user
        self.publish_fails = self.is_offline = self.was_changed_there = False
        self.repos: dict[str, Target] = {}
        self.pushes: list[PushRequest] = []
        self.compared: list[tuple[str, str, str, str]] = []
        self.published = PublishedRun(
            repo="ada/tea",
            request=TrainingRequest(
                dataset="ada/tickets",
                dataset_revision="d" * 40,
                base="Qwen/Qwen3-0.6B",
                base_revision="e" * 40,
                r=8,
            ),
            left_out=("It went on from an adapter that is not on the Hub.",),
        )
        self.slow_seconds = 3.0  # of a dataset "slow/..."
        self.backend = ScriptedBackend(step_seconds, num_steps)
        self._backend = self.backend
        self._rehearsals = Rehearsals(self._rehearse)

    def _rehearse(self, repo: str, private: bool, token: str | None) -> Rehearsal:
        target = self.read_target_of(repo)
        problem = f"{repo} holds files of something else." if target.state == "foreign" else ""
        state = "refused" if problem else "new"
        fix = "Choose another name." if problem else ""
        return Rehearsal(repo=repo, state=state, is_private=private, problem=problem, fix=fix)

    @override
    def hardware(self) -> Hardware:
        return self.machine

    @override
    def read_account(self) -> Account | None:
        if self.is_offline:
            raise HubError("The Hub does not answer.", "Check the network and try again.")
        return self.user

    @override
    def read_target(self, run: RunFolder, repo: str) -> Target:
        return self.read_target_of(repo)

    def read_target_of(self, repo: str) -> Target:
        if self.is_offline:
            raise HubError("The Hub does not answer.", "Check the network and try again.")
        return self.repos.get(repo, Target("free"))

    @override
    def published_run(self, repo: str) -> PublishedRun:
        if repo == "ada/gone":
            raise ModelError("The Hub has no model 'ada/gone' that you can see.", "Check it.")
        return self.published.model_copy(update={"repo": repo})

    @override
    def search_bases(self, text: str) -> list[ModelHit]:
        found = (name for name in BASES if text.lower() in name.lower())
        kinds = {
            "Qwen/Qwen3-30B-A3B": "mixture of experts",
            "Qwen/Qwen3.5-9B": "multimodal, hybrid",
        }
        sizes = {name: base.parameters for name, base in BASES.items()}
        return [ModelHit(name, 0, sizes[name], False, kinds.get(name, "")) for name in found]

    @override
    def search_datasets(self, text: str) -> list[str]:
        names = ["warned", "broken", "hostile", "trl-lib/Capybara", "tatsu-lab/alpaca"]
        return [name for name in names if text.lower() in name.lower()]

    @override
    def base_facts(self, request: TrainingRequest) -> ModelFacts:
        if request.base == "away/base":
            raise HubError("The Hub does not answer.", "Check the network and try again.")
        if request.base not in BASES:
            raise ModelError(
                f"There is no model {request.base!r} on the Hub.", "Check the spelling."
            )
        return BASES[request.base]

    @override
    def _inspected(self, request: TrainingRequest) -> tuple[ModelFacts, Inspection]:
        if request.dataset.startswith("slow/"):
            time.sleep(self.slow_seconds)
        base = self.base_facts(request)
        if request.dataset.startswith("away/"):
            raise HubError("The Hub does not answer.", "Check the network and try again.")
        if request.dataset.startswith("nobody/"):
            raise DatasetError(
                f"There is no dataset {request.dataset!r} on the Hub.",
                "Check the spelling; private ones need a token.",
            )
        found = inspection(request.dataset.rsplit("/", 1)[-1], request.max_length or 512)
        is_set = {
            "duplicate_rows": request.deduplicate,
            "guessed_columns": bool(request.columns),
            "leak": bool(request.eval_fraction),
            "nothing_held_out": bool(request.eval_fraction),
        }
        left = tuple(p for p in found.problems if not is_set.get(p.code))
        return base, found.model_copy(update={"problems": left})

    @override
    def quality(self, base_sha: str) -> list[Quality]:
        return [TWO_BITS] if base_sha == TWO_BITS.base_sha else []

    @override
    def heldout_questions(self, run: RunFolder, count: int = MOST_QUESTIONS) -> list[Question]:
        pairs = zip(PROMPTS, _EXPECTED, strict=True)
        return [Question(prompt=p, expected=e) for p, e in pairs][:count]

    @override
    def compare(
        self,
        run: RunFolder,
        questions: Sequence[Question],
        options: CompareOptions = AS_TRAINED,
        others: Sequence[Path] = (),
    ) -> Iterator[Reply]:
        yield Loading(text="Loading the base at 4 bit …")
        time.sleep(3 * self.backend.step_seconds)
        rows = tuple(_row(question, options, len(others)) for question in questions)
        if len(rows) == 1:
            yield from self._chunks(rows[0])
        else:
            for done in range(1, len(rows) + 1):
                yield Answered(done=done, total=len(rows))
                time.sleep(self.backend.step_seconds)
        done = Done(
            rows=rows,
            base_fingerprint="9f2c41d07ab3" * 5,
            same_base=True,
            prompt_tokens=24,
            tokens_per_second=310.0,
            seconds=1.4,
        )
        yield done.judged("exact")

    @override
    def compare_adapter(
        self,
        adapter: str,
        questions: Sequence[Question],
        options: CompareOptions = AS_TRAINED,
        *,
        revision: str = "",
        on_base: str = "",
    ) -> Iterator[Reply]:
        self.compared.append((adapter, revision, on_base, questions[0].prompt))
        if adapter == "ada/gone":
            raise ModelError("The Hub has no model 'ada/gone' that you can see.", "Check it.")
        row = _row(questions[0], options, 0)
        yield from self._chunks(row)
        yield Done(
            rows=(row,),
            base_fingerprint="9f2c41d07ab3" * 5,
            same_base=True,
            prompt_tokens=24,
            tokens_per_second=310.0,
            seconds=1.4,
        )

    def _chunks(self, row: ComparedRow) -> Iterator[Reply]:
        answers = [_words(answer.text) for answer in row.answers]
        for i in range(max(map(len, answers))):
            for pane, words in zip(PANES, answers, strict=False):
                if i < len(words):
                    yield Chunk(pane=pane, text=words[i])
            time.sleep(self.backend.step_seconds / 3)

    @override
    def publish(
        self,
        run: RunFolder,
        push: PushRequest,
        *,
        is_kept: bool = True,
    ) -> Published:
        repo, private = push.repo, push.private
        self.pushes.append(push)
        time.sleep(self.backend.step_seconds)
        if self.publish_fails:
            raise HubError("The Hub did not answer (503).", "The adapter is safe: press Retry.")
        if self.was_changed_there and not push.replace:
            raise Conflict(
                f"app.py in {repo} was changed on the Hub.", "Replace what was changed there."
            )
        created = repo not in self.repos
        self.repos.setdefault(repo, Target("ours", private))
        is_space = push.what == "demo-space"
        done = Publication(
            repo=repo,
            what=push.what,
            url=f"https://huggingface.co/{'spaces/' if is_space else ''}{repo}",
            commit="4e1f" * 10,
            num_files=7,
            created=created,
            time=time.time(),
            step=push.step,
        )
        run.add_publication(done)
        return Published(
            repo=repo,
            url=done.url,
            commit=done.commit,
            num_files=done.num_files,
            created=created,
        )


POINTS = (
    QualityPoint(name="16 bit", ppl=30.8, kl=0.0, top1=1.0),
    QualityPoint(name="quantized", ppl=56.4, kl=0.878, top1=0.504),
    QualityPoint(name="start", ppl=42.1, kl=0.557, top1=0.594),
)
TWO_BITS = Quality(
    base_id="demo", base_sha="d" * 40, bits=2, init="eora", heal=False, group_size=64, r=32,
    bits_per_weight=2.281, text="your held-out rows", points=POINTS,
)  # fmt: skip


def gate(*, is_broken: bool) -> Gate:
    points = (
        (*POINTS[:2], QualityPoint(name="start", ppl=4210, kl=5.1, top1=0.04))
        if is_broken
        else POINTS
    )
    why = "broken" if is_broken else "degraded, not broken"
    return Gate(
        bits=2, init="eora", points=points, is_broken=is_broken,
        why=f"At 2 bits this base is {why}: perplexity 42.1, at 16 bits 30.8.", text="your held-out rows",
    )  # fmt: skip


def script(num_steps: int, ending: str, upto: int | None, after: int = 0) -> Iterator[Event]:
    """The events of one attempt."""
    yield Started(place="CPU, 2 cores", pid=1, pid_start_time=0.0, resume_step=after)
    yield Phase(name="data", done=0, total=1000)
    yield Phase(name="data", done=600, total=1000)
    yield Phase(name="model", done=0, total=1)
    yield Phase(name="evaluate", done=0, total=1)
    yield from _evaluation(after, num_steps)
    yield Phase(name="train", done=0, total=num_steps)
    for step in range(after + 1, (upto or num_steps) + 1):
        yield _metric(step, num_steps)
        if step % 20 == 0:
            yield from _evaluation(step, num_steps)
            yield Checkpoint(step=step, num_bytes=412_000, seconds=0.2)
    yield from _endings(ending, upto or num_steps)


def _endings(ending: str, step: int) -> Iterator[Event]:
    if ending == "failed":
        yield Note(level="warning", text="Free memory is below 300 MiB.")
        yield Failed(
            cause="The machine ran out of memory at step 47.",
            hint="Choose a smaller batch or a shorter longest example, then start again.",
            line="RuntimeError: [enforce fail at alloc_cpu.cpp:124] data. DefaultCPUAllocator: <b>",
        )
    elif ending == "paused":
        yield Paused(step=step, why="signal")
    elif ending == "cancelled":
        yield Cancelled(step=step)
    elif ending == "finished":
        yield Phase(name="save", done=0, total=1)
        yield Phase(name="report", done=0, total=1)
        yield Finished(step=step)


def _metric(step: int, total: int) -> Metric:
    wobble = 0.25 * math.sin(step * 12.9898) * math.exp(-step / 60)
    return Metric(
        step=step,
        total_steps=total,
        values={
            "loss": 0.12 + 3.1 * math.exp(-step / 22) + abs(wobble),
            "learning_rate": 1.4e-3 * min(step / 6, 0.5 + 0.5 * math.cos(math.pi * step / total)),
            "grad_norm": 0.4 + 1.5 * math.exp(-step / 30) + abs(wobble),
            "epoch": 3 * step / total,
            "tokens_per_second": 3380 + 200 * math.sin(step),
            "memory_gib": 1.21,
            "peak_gib": 1.34,
        },
    )


def _evaluation(step: int, total: int) -> Iterator[Event]:
    loss = 0.19 + 3.0 * math.exp(-step / 25)
    yield Metric(step=step, total_steps=total, values={"eval_loss": loss})
    for prompt, expected in zip(PROMPTS, _EXPECTED, strict=True):
        answer = expected if step >= 60 else f"The {prompt.split()[-1].strip('?.')} is the"
        yield Sample(step=step, prompt=prompt, expected=expected, text=answer)


def _finish(run: RunFolder, keeps: bool) -> None:
    if not keeps:
        return
    run.adapter_folder.mkdir(exist_ok=True)
    (run.adapter_folder / "adapter_model.safetensors").write_bytes(b"")
    run.report_file.write_text(answered_report().model_dump_json())


def answered_report() -> Report:
    """With scored answers and general questions."""

    def measure(
        name: str, base: int, trained: int, rows: int, interval: tuple[float, float]
    ) -> Measure:
        low, high = interval
        change = ScoreChange(change=(trained - base) / rows, low=low, high=high)
        before, after = ((1.0,) * right + (0.0,) * (rows - right) for right in (base, trained))
        return Measure(name=name, base=before, trained=after, change=change)

    return finished_report().model_copy(
        update={
            "measures": (
                measure("number", 3, 96, 100, (0.86, 0.97)),
                measure("exact", 0, 94, 100, (0.87, 0.97)),
            ),
            "forgetting": (
                measure("general", 41, 37, 60, (-0.18, 0.03)),
                measure("knowledge", 17, 16, 20, (-0.23, 0.14)),
                measure("instructions", 14, 12, 20, (-0.32, 0.14)),
                measure("arithmetic", 10, 9, 20, (-0.23, 0.14)),
            ),
        }
    )


def finished_report() -> Report:
    return Report(
        scores=(
            Scores(name="base", heldout_loss=3.19, exact_match=0.0, general_loss=1.42),
            Scores(name="trained", heldout_loss=0.214, exact_match=0.94, general_loss=1.51),
        ),
        num_eval_rows=100,
        heldout_change=LossChange(change=-2.976, low=-3.11, high=-2.84),
        general_change=LossChange(change=0.09, low=0.06, high=0.12),
        num_exact_match_rows=100,
        answers=(Answer(prompt="p", expected="e", base="b", adapted="e"),),
        steps=120,
        trained_tokens=412_000,
        train_seconds=94.0,
        total_seconds=121.0,
        tokens_per_second=3380.0,
        peak_gib=1.34,
        adapter_sha256="a" * 64,
    )


def scripted_run(
    actions: FakeActions, name: str, ending: str, upto: int | None = None
) -> RunFolder:
    """A run whose events are all there already."""
    request = TrainingRequest(name=name)
    run = create_run(
        actions.settings.runs_folder, request, actions.plan(request), owner=actions.visitor.subject
    )
    step_seconds, actions.backend.step_seconds = actions.backend.step_seconds, 0.0
    actions.backend.work(run, ending, upto)
    actions.backend.step_seconds = step_seconds
    run.log_file.write_text(
        f"loading {actions.settings.home}/base\nstep 1 <script>alert(1)</script>\n"
    )
    return run

"""Prove a publication: what anybody downloads and loads by the code of the card answers as the adapter does here."""

import gc
import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.constants import HF_HUB_CACHE
from safetensors.torch import load_file

from qlora_space.core.child import ChildFailed, run_python
from qlora_space.core.errors import HubError, RunError
from qlora_space.core.export import Exporting
from qlora_space.core.options import Format
from qlora_space.core.proof import Proof, problems_of
from qlora_space.data import load_tokenizer
from qlora_space.data.messages import Message
from qlora_space.data.template.renderer import Renderer
from qlora_space.hub import fetch_base
from qlora_space.hub.card.how_to_load import loading_code
from qlora_space.hub.connection import as_argument, explained_errors
from qlora_space.hub.download import ADAPTER_FILES, PACKED_FOLDER, RECORD_FILE, TOKENIZER_FILES
from qlora_space.lowbit.architecture import default_device
from qlora_space.model import fresh_load
from qlora_space.model.adapter import load_adapter
from qlora_space.model.agreement import AnsweredRow, agreement, answer_logits, answered_rows
from qlora_space.model.base import explains_out_of_memory
from qlora_space.model.export_run import trained_base
from qlora_space.model.load import load_frozen_base
from qlora_space.plan import Plan
from qlora_space.runs import RunFolder
from qlora_space.runs.export import export_for_16_bit

_PROMPTS = 4
_SECONDS = 3600
_NAMES = (*ADAPTER_FILES, *TOKENIZER_FILES, RECORD_FILE, f"{PACKED_FOLDER}/*")


@dataclass(frozen=True)
class PublishedAs:
    """A publication; `step`: of the kept checkpoint, None for the run's adapter."""

    repo: str
    commit: str
    step: int | None = None


@dataclass(frozen=True)
class Kind:
    """Which base it is for, by the record in its repository."""

    for_16_bit: bool = False
    with_base: bool = False


@dataclass(frozen=True)
class Expected:
    """Of the adapter as it is here: logits (A, V) of each row, prompts as training has them, its values."""

    rows: list[AnsweredRow]
    logits: list[torch.Tensor]
    conversations: list[list[dict[str, str]]]
    prompts: list[list[int]]
    ends: tuple[int, ...]
    tokenizer_end: int | None
    adapter_sha256: str


def prove(run: RunFolder, published: PublishedAs, token: str | None) -> Iterator[Exporting | Proof]:
    """Progress, then what was found. Raises RunError, ModelError, HubError, OutOfMemory."""
    plan = run.plan()
    _free_memory()  # of what was trained in this process before
    with tempfile.TemporaryDirectory() as scratch:
        yield Exporting(text="Downloading what was published")
        folder = download_afresh(published.repo, plan, Path(scratch), token)
        kind = kind_of(folder, plan)
        yield Exporting(text="Answering held-out prompts with the adapter")
        base_folder = fetch_base(plan.base, token)
        expected = expected_of(run, base_folder, published, kind)
        _free_memory()
        yield Exporting(text="Loading it by the code of its card")
        code = loading_code(plan, published.repo, **vars(kind))
        here = code.replace("path/to/the/base", str(base_folder))
        found = answers_afresh(here, Path(scratch), expected)
        proof = proof_of(published, folder.name, expected, found, Path(scratch))
        yield proof.model_copy(update=vars(kind) | {"step": published.step})


def _free_memory() -> None:
    """The card too: another process is to load the base there."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def kind_of(folder: Path, plan: Plan) -> Kind:
    """By the record; one without is an adapter for the base that it was trained on."""
    try:
        base = json.loads((folder / RECORD_FILE).read_bytes())["base"]
        return Kind(plan.is_low_bit and base["bits"] == 16, bool(base["comes_along"]))
    except (OSError, ValueError, KeyError, TypeError):
        return Kind()


def expected_of(
    run: RunFolder, base_folder: Path, published: PublishedAs, kind: Kind = Kind()
) -> Expected:
    """On the base that the publication is for. Raises RunError where there is nothing to compare on."""
    plan, rows = run.plan(), answered_rows(run.data_folder)
    if not rows:
        raise RunError("The run has no rows left to compare on.", "Train again.")
    device = default_device() if plan.hardware.device == "cuda" else "cpu"
    with tempfile.TemporaryDirectory() as scratch:
        adapter = run.adapter_after(published.step)
        if kind.for_16_bit:
            adapter = Path(scratch)
            export_for_16_bit(run, adapter)
            base = load_frozen_base(plan.base, base_folder, 16, device)
        else:
            base = trained_base(run, base_folder, device)
        model = load_adapter(base, adapter)
        with explains_out_of_memory("Proving what was published"):
            logits = answer_logits(model, rows)
        sha256 = fresh_load.adapter_sha256(model)
    conversations, prompts = _prompts(run, plan, base_folder)
    tokenizer = load_tokenizer(base_folder)
    known = set(fresh_load.ends(model, tokenizer))
    return Expected(
        rows=rows,
        logits=logits,
        conversations=conversations,
        prompts=prompts,
        ends=tuple(i for i in run.stop_token_ids() if i in known),
        tokenizer_end=tokenizer.eos_token_id,
        adapter_sha256=sha256,
    )


def _prompts(
    run: RunFolder, plan: Plan, base_folder: Path
) -> tuple[list[list[dict[str, str]]], list[list[int]]]:
    """Held-out conversations and their prompts in training; none for text, nor where the generation prompt of the
    base's own template is not what training put before an answer."""
    format = Format(plan.dataset.format)
    if format is Format.TEXT:
        return [], []
    tokenizer = load_tokenizer(base_folder)
    if not tokenizer.chat_template:
        return [], []
    renderer, found = Renderer(tokenizer, format), ([], [])
    for question in run.heldout_questions(_PROMPTS):
        turns = question.conversation()
        messages = [{"role": role, "content": content} for role, content in turns]
        ids = renderer.prompt_ids([Message(role, content) for role, content in turns])
        own = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        if list(own) == ids:
            found[0].append(messages)
            found[1].append(ids)
    return found


def download_afresh(repo: str, plan: Plan, scratch: Path, token: str | None) -> Path:
    """Into an empty cache in `scratch`, which sees nothing else but the base; returns the folder, whose name is the
    commit. Raises HubError."""
    cache = scratch / "hub"
    cache.mkdir()
    if plan.base.source == "hub":
        name = f"models--{plan.base.id.replace('/', '--')}"
        (cache / name).symlink_to(Path(HF_HUB_CACHE) / name)
    with explained_errors(repo, HubError):
        folder = snapshot_download(
            repo, cache_dir=cache, allow_patterns=list(_NAMES), token=as_argument(token)
        )
    _mark_as_missing(Path(folder))
    return Path(folder)


def _mark_as_missing(folder: Path) -> None:
    """What an adapter's repository does not have and transformers asks for, as its cache notes the Hub's "no": so that
    it can be loaded without a network."""
    notes = folder.parents[1] / ".no_exist" / folder.name
    notes.mkdir(parents=True)
    for name in ("config.json", *TOKENIZER_FILES):
        if not (folder / name).exists():
            (notes / name).touch()


def answers_afresh(code: str, scratch: Path, expected: Expected) -> dict[str, Any] | str:
    """What a process finds that has this cache alone, no network and no token; or why it failed."""
    ask(code, scratch, expected)
    environment = {"HF_HUB_CACHE": str(scratch / "hub"), "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    arguments = ["-P", fresh_load.__file__, str(scratch)]  # -P: no module of ours shadows another's
    try:
        run_python(arguments, seconds=_SECONDS, environment=environment)
    except ChildFailed as why:
        return str(why)
    return json.loads((scratch / "found.json").read_text())


def ask(code: str, scratch: Path, expected: Expected) -> None:
    """Write what fresh_load reads."""
    rows = [{"ids": row.ids, "positions": row.positions} for row in expected.rows]
    asked = {"code": code, "rows": rows, "conversations": expected.conversations}
    (scratch / "asked.json").write_text(json.dumps(asked))


def proof_of(
    published: PublishedAs,
    head: str,
    expected: Expected,
    found: dict[str, Any] | str,
    scratch: Path,
) -> Proof:
    """The comparison, with a sentence for each difference."""
    stated = {"repo": published.repo, "commit": published.commit, "time": time.time()}
    if isinstance(found, str):
        problems = (f"The code of its card does not load it ({found}).",)
        return Proof(**stated, agreement=None, prompts=0, same_prompts=0, problems=problems)
    logits = load_file(scratch / "logits.safetensors")
    theirs = [logits[str(number)] for number in range(len(expected.rows))]
    agreed = agreement(expected.rows, expected.logits, theirs)
    same = sum(a == b for a, b in zip(expected.prompts, found["prompts"], strict=True))
    problems = problems_of(agreed)
    if found["adapter"] != expected.adapter_sha256:
        problems.append(
            "The weights of its adapter or their scales, as they were loaded, are others."
        )
    if same < len(expected.prompts):
        problems.append(
            f"Its chat template writes {len(expected.prompts) - same} of {len(expected.prompts)} held-out prompts in "
            "another way than training."
        )
    if missing := set(expected.ends) - set(found["ends"]):
        problems.append(f"Nothing in it ends an answer at token {min(missing)}, as training did.")
    elif found["tokenizer_end"] != expected.tokenizer_end:
        problems.append(
            f"Its tokenizer ends answers with token {found['tokenizer_end']}, that of training with "
            f"{expected.tokenizer_end}."
        )
    if head != published.commit:
        problems.append(f"Its newest commit is {head[:12]}, not the one that was pushed.")
    return Proof(
        **stated,
        agreement=agreed,
        prompts=len(expected.prompts),
        same_prompts=same,
        problems=tuple(problems),
    )

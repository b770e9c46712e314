"""Reads a dataset once and freezes it as packed tokens, so that training never tokenizes."""

import hashlib
import itertools
import json
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from qlora_space import hub
from qlora_space.core.atomic import recover, scratch_folder
from qlora_space.core.errors import DatasetError
from qlora_space.core.options import Format
from qlora_space.data.corpus import Corpus, HeldOutCandidates
from qlora_space.data.formats.detect import Detection
from qlora_space.data.formats.rules import RULE_OF
from qlora_space.data.messages import Example, Message
from qlora_space.data.packing import waste_fraction
from qlora_space.data.prepared import (
    EvalExample,
    Manifest,
    Prepared,
    add_to_cache,
    link_from_cache,
    load_prepared,
    write_prepared,
)
from qlora_space.data.reading.sources import open_source
from qlora_space.data.reading.trees import with_trees_joined
from qlora_space.data.rows import Row, Source
from qlora_space.data.selection import (
    MAX_TEXT_PROMPT_CHARS,
    HeldOut,
    deduplicate,
    from_eval_split,
    pack_documents,
    shortened,
    split,
    split_pieces,
)
from qlora_space.data.template.renderer import Renderer, WrongPrediction
from qlora_space.data.template.tokenizer import load_tokenizer, tokenizer_hash
from qlora_space.data.tokenize_rows import detect_format, tokenize_rows
from qlora_space.plan import Plan, holds_out_pieces

_VERSION = 2  # of what is written; another number makes every folder stale
_MAX_EVAL_EXAMPLES = 200

Progress = Callable[[int, int], None]
"""(rows done, rows in all)"""


@dataclass(frozen=True)
class _Evaluation:
    """Held-out documents and where they are."""

    corpus: Corpus
    held: HeldOut
    texts_are_trained: bool = False

    @property
    def pieces(self) -> tuple[int, ...]:
        """Held-out documents of each text; none where each is a row of its own."""
        rows = (self.corpus.row_of[index] for index in self.held.indices)
        counts = tuple(len(list(group)) for _, group in itertools.groupby(rows))
        return counts if any(count > 1 for count in counts) else ()


def prepare(
    plan: Plan,
    folder: Path,
    on_progress: Progress = lambda _done, _total: None,
    token: str | None = None,
    *,
    shared: Path | None = None,
) -> Prepared:
    """Read, tokenize, hold out, pack and write; or reuse `folder` if it was made of the same inputs.

    `shared`: folder of the cache of prepared data that runs share. Raises DatasetError, HubError,
    ModelError, DiskFull.
    """
    recover(folder.parent, folder.name)
    if shared:
        recover(shared)
    tokenizer_folder = hub.fetch_tokenizer(plan.base, token)
    tokenizer_sha = tokenizer_hash(tokenizer_folder)
    key = _key(plan, tokenizer_sha)
    if (found := _existing(folder, key)) is not None:
        return found
    if shared and (found := link_from_cache(shared, key, folder)):
        on_progress(found.manifest.rows_read, found.manifest.rows_read)
        return found
    tokenizer = load_tokenizer(tokenizer_folder)
    inputs = {"key": key, "tokenizer_sha256": tokenizer_sha}
    prepare_anew = partial(_prepare, plan, folder, tokenizer, inputs, on_progress, token)
    try:
        prepared = prepare_anew()
    except WrongPrediction:
        prepared = prepare_anew(predict=False)
    if shared:
        add_to_cache(shared, prepared)
    return prepared


def _prepare(
    plan: Plan,
    folder: Path,
    tokenizer: Any,
    manifest_fields: dict[str, Any],
    on_progress: Progress,
    token: str | None,
    predict: bool = True,
) -> Prepared:
    """Raises WrongPrediction if `predict` (see Renderer)."""
    format = Format(plan.dataset.format)
    renderer = Renderer(tokenizer, format, plan.assistant_only_loss, predict=predict)
    source = _open(plan, plan.dataset.split, token)
    # The parts that were not planned stay unread, also where a column has their name.
    columns = {**dict.fromkeys(RULE_OF[format].part_names, ""), **plan.columns}
    _, detection = detect_format(source, source.rows(), format, columns)
    detection = replace(detection, instruction=plan.instruction)
    with scratch_folder(folder, "The prepared data") as scratch:
        overlap = plan.text_overlap_tokens
        corpus = Corpus(plan.max_length, scratch, "train", plan.drop_truncated, overlap)
        candidates = _read(plan, corpus, source.rows(), detection, renderer, on_progress)
        _check_usable(plan, corpus)
        if plan.eval_split:
            held = Corpus(plan.max_length, scratch, "eval", overlap=overlap)
            evaluation = _read_evaluation(plan, held, detection, renderer, corpus, token)
            indices = list(range(len(corpus)))
        elif holds_out_pieces(format, corpus.count_distinct()):
            indices, evaluation = _split_pieces(plan, corpus, tokenizer)
        else:
            indices, held_out = split(corpus, candidates, plan.eval_fraction)
            evaluation = _Evaluation(corpus, held_out)
        if plan.deduplicate:
            indices = deduplicate(corpus, indices)
        manifest_fields = {**manifest_fields, "columns": detection.mapping}
        prepared = _write(plan, folder, corpus, indices, evaluation, manifest_fields)
        corpus.close()
        evaluation.corpus.close()
    return prepared


def _write(
    plan: Plan,
    folder: Path,
    corpus: Corpus,
    indices: list[int],
    evaluation: _Evaluation,
    manifest_fields: dict[str, Any],
) -> Prepared:
    rows = pack_documents(corpus, indices, packing=plan.packing)
    random.Random(plan.seed).shuffle(rows)
    held_out = evaluation.held
    lengths = [corpus.length(index) for index in indices]
    manifest = Manifest(
        **manifest_fields,
        dataset_sha=plan.dataset.sha,
        format=Format(plan.dataset.format),
        max_length=plan.max_length,
        rows_read=corpus.rows_read,
        rows_used=len({corpus.row_of[index] for index in indices}),
        rows_dropped=dict(corpus.dropped),
        rows_truncated=corpus.rows_truncated,
        eval_rows=len(held_out.indices),
        eval_pieces=evaluation.pieces,
        eval_texts_are_trained=evaluation.texts_are_trained,
        tokens=sum(lengths),
        trained_tokens=sum(map(corpus.trained_tokens, indices)),
        packed_rows=len(rows),
        waste_fraction=round(waste_fraction(lengths, rows, plan.max_length), 6),
        stop_token_ids=tuple(sorted(corpus.stop_token_ids)),
    )
    return write_prepared(
        folder,
        manifest,
        ([corpus.document(index) for index in row] for row in rows),
        ([evaluation.corpus.document(index)] for index in held_out.indices),
        map(_eval_example, held_out.examples[:_MAX_EVAL_EXAMPLES]),
    )


def _open(plan: Plan, split: str, token: str | None) -> Source:
    """The source at the planned commit. A local file must still be the one that was inspected."""
    dataset = plan.dataset
    source = open_source(
        dataset.id, dataset.config or None, split, dataset.sha, token, allow_local=True
    )
    if source.sha != dataset.sha:
        raise DatasetError(
            f"{dataset.id} was changed after it was inspected.", "Inspect it again, then start."
        )
    return with_trees_joined(source, Format(dataset.format), plan.columns)


def _read(
    plan: Plan,
    corpus: Corpus,
    rows: Iterable[Row],
    detection: Detection,
    renderer: Renderer,
    on_progress: Progress,
) -> HeldOutCandidates:
    candidates = HeldOutCandidates(plan.seed, plan.num_eval_rows if plan.eval_fraction else 0)
    total = min(plan.max_rows or plan.dataset.num_rows, plan.dataset.num_rows)
    limited = itertools.islice(rows, plan.max_rows or None)
    for done, row in enumerate(tokenize_rows(limited, detection, renderer), start=1):
        if corpus.add(row) and row.example is not None:
            candidates.offer(row.digest, shortened(row.example))
        if done % 500 == 0:
            on_progress(done, max(total, done))
    corpus.finish()
    on_progress(corpus.rows_read, corpus.rows_read)
    return candidates


def _read_evaluation(
    plan: Plan,
    held: Corpus,
    detection: Detection,
    renderer: Renderer,
    trained: Corpus,
    token: str | None,
) -> _Evaluation:
    tokenized = tokenize_rows(_open(plan, plan.eval_split, token).rows(), detection, renderer)
    held_out, num_leaks = from_eval_split(held, tokenized, trained, plan.num_eval_rows)
    held.finish()
    if not len(held):
        raise _nothing_held_out(plan, held, num_leaks)
    return _Evaluation(held, held_out)


def _nothing_held_out(plan: Plan, held: Corpus, num_leaks: int) -> DatasetError:
    what = f"No row of the split {plan.eval_split!r} can be used"
    if num_leaks:
        what += f": {num_leaks} of them are also trained on"
    elif held.dropped:
        what += f": {held.reasons[held.dropped.most_common(1)[0][0]].rstrip('.')}"
    return DatasetError(f"{what}.", "Hold out some training rows, or choose another split.")


def _split_pieces(plan: Plan, corpus: Corpus, tokenizer: Any) -> tuple[list[int], _Evaluation]:
    train, held = split_pieces(corpus, corpus.content, plan.eval_fraction, plan.num_eval_rows)
    texts = (
        tokenizer.decode(corpus.document(at).input_ids, skip_special_tokens=True) for at in held
    )
    held_out = HeldOut(held, list(map(shortened, texts)))
    return train, _Evaluation(corpus, held_out, texts_are_trained=True)


def _check_usable(plan: Plan, corpus: Corpus) -> None:
    if len(corpus):
        return
    if not corpus.rows_read:
        raise DatasetError(f"{plan.dataset.id} has no rows.", "Choose another dataset or split.")
    code, count = corpus.dropped.most_common(1)[0]
    if code == "truncated_answer":
        raise DatasetError(
            f"max_length is {plan.max_length}, which leaves no token of any answer.",
            f"Set it to {corpus.min_max_length} or more.",
        )
    raise DatasetError(
        f"No row of {plan.dataset.id} can be trained on; {count} of {corpus.rows_read} "
        f"for the reason {code}: {corpus.reasons[code]}",
        "Choose another format or other columns.",
    )


def _eval_example(example: Example) -> EvalExample:
    if isinstance(example, str):
        beginning = example[:MAX_TEXT_PROMPT_CHARS]
        cut = max(beginning.rfind(" "), len(beginning) // 2)
        rest = example[cut : cut + 2 * MAX_TEXT_PROMPT_CHARS]
        return EvalExample((Message("user", example[:cut]),), rest)
    return EvalExample(example[:-1], example[-1].as_text)


def _existing(folder: Path, key: str) -> Prepared | None:
    try:
        prepared = load_prepared(folder)
    except DatasetError:
        return None
    return prepared if prepared.manifest.key == key else None


def _key(plan: Plan, tokenizer_sha: str) -> str:
    """Everything that the content of the folder depends on."""
    dataset = plan.dataset
    parts = {
        "version": _VERSION,
        "tokenizer": tokenizer_sha,
        "dataset": [dataset.id, dataset.sha, dataset.config, dataset.split, dataset.format],
        "columns": sorted(plan.columns.items()),
        **({"instruction": plan.instruction} if plan.instruction else {}),
        "held_out": [plan.eval_split, plan.eval_fraction, plan.num_eval_rows, plan.max_rows],
        "shape": [plan.max_length, plan.packing, plan.assistant_only_loss, plan.seed],
        "text_overlap_tokens": plan.text_overlap_tokens,
        "left_out": [plan.deduplicate, plan.drop_truncated],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

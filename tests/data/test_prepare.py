import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import datasets
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qlora_space.core.errors import DatasetError
from qlora_space.data import load_prepared, load_tokenizer, prepare
from qlora_space.plan import Plan
from tests.data.conftest import write_jsonl

MakePlan = Callable[..., Plan]
ROWS = [{"prompt": f"What is {i} plus {i}?", "completion": f"It is {i + i}."} for i in range(120)]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "sums.jsonl", ROWS)


def documents(file: Path) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Ids and labels of every document of every row."""
    found = []
    for row in datasets.Dataset.from_file(str(file)):
        at = 0
        for length in row["seq_lengths"]:
            window = slice(at, at + length)
            found.append((tuple(row["input_ids"][window]), tuple(row["labels"][window])))
            at += length
        assert at == len(row["input_ids"]) == len(row["labels"])
    return found


@settings(max_examples=15, suppress_health_check=list(HealthCheck))
@given(
    answers=st.lists(st.text("ab c", min_size=1, max_size=30), min_size=20, max_size=40),
    seed=st.integers(0, 99),
    packing=st.booleans(),
)
def test_rows_are_trained_on_or_held_out_or_dropped_and_never_two_of_these(
    tmp_path: Path, make_plan: MakePlan, answers: list[str], seed: int, packing: bool
) -> None:
    rows = [{"prompt": "Q?", "completion": answer} for answer in [*answers, "x", "y", "z"]]
    plan = make_plan(write_jsonl(tmp_path / "a.jsonl", rows), seed=seed, packing=packing)
    made = prepare(plan, tmp_path / "data")
    train, held = documents(made.train_file), documents(made.eval_file)
    assert not {ids for ids, _ in train} & {ids for ids, _ in held}
    counts = made.manifest
    dropped = sum(counts.rows_dropped.values())
    assert counts.rows_read == len(rows) == counts.rows_used + counts.eval_rows + dropped
    assert len(train) == counts.rows_used
    assert len(held) == counts.eval_rows
    assert counts.tokens == sum(len(ids) for ids, _ in train)
    assert counts.trained_tokens == sum(label != -100 for _, ls in train for label in ls)
    assert all(
        label in (-100, id) for ids, labels in train for id, label in zip(ids, labels, strict=True)
    )


def test_the_labels_are_the_answers(
    file: Path, tmp_path: Path, make_plan: MakePlan, base_folder: Path
) -> None:
    made = prepare(make_plan(file), tmp_path / "data")
    tokenizer = load_tokenizer(base_folder)
    texts = {
        tokenizer.decode([label for label in labels if label != -100])
        for _, labels in documents(made.train_file)
    }
    assert texts < {row["completion"] + "<|im_end|>" for row in ROWS}
    stops = tokenizer.convert_ids_to_tokens(list(made.manifest.stop_token_ids))
    assert stops == ["<|im_end|>"]


def test_the_same_plan_gives_the_same_bytes_and_another_seed_others(
    file: Path, tmp_path: Path, make_plan: MakePlan
) -> None:
    one = prepare(make_plan(file, seed=1), tmp_path / "one").manifest
    again = prepare(make_plan(file, seed=1), tmp_path / "again").manifest
    other = prepare(make_plan(file, seed=2), tmp_path / "other").manifest
    assert one == again
    assert one.files["train.arrow"] != other.files["train.arrow"]


def test_an_intact_folder_of_the_same_inputs_is_reused_and_any_other_is_replaced(
    file: Path, tmp_path: Path, make_plan: MakePlan
) -> None:
    plan, folder = make_plan(file), tmp_path / "data"
    first = prepare(plan, folder)
    time = first.train_file.stat().st_mtime_ns
    assert prepare(plan, folder) == first
    assert first.train_file.stat().st_mtime_ns == time
    with first.train_file.open("ab") as stream:
        stream.write(b"x")
    with pytest.raises(DatasetError, match="damaged"):
        load_prepared(folder)
    assert prepare(plan, folder) == first == load_prepared(folder)
    assert prepare(make_plan(file, max_length=64), folder).manifest.max_length == 64
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_failure_leaves_nothing_behind(
    file: Path, tmp_path: Path, make_plan: MakePlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(file)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("qlora_space.data.prepared._write_rows", full)
    with pytest.raises(Exception, match="No space left"):
        prepare(plan, tmp_path / "data")
    assert {path.name for path in tmp_path.iterdir()} == {"sums.jsonl"}


def test_held_out_rows_become_prompts_with_answers(
    file: Path, tmp_path: Path, make_plan: MakePlan
) -> None:
    examples = prepare(make_plan(file, eval_fraction=0.1), tmp_path / "data").eval_examples()
    pairs = {(row["prompt"], row["completion"]) for row in ROWS}
    assert len(examples) == 12
    assert {(e.messages[-1].content, e.expected) for e in examples} < pairs


def test_an_evaluation_split_is_used_without_the_rows_that_are_trained_on(
    tmp_path: Path, make_plan: MakePlan
) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    write_jsonl(folder / "train.jsonl", ROWS[:60])
    write_jsonl(folder / "test.jsonl", ROWS[50:80])
    made = prepare(make_plan(folder), tmp_path / "data")
    assert (made.manifest.rows_used, made.manifest.eval_rows) == (60, 20)


def test_a_cut_answer_is_counted_and_a_lost_one_is_dropped(
    tmp_path: Path, make_plan: MakePlan
) -> None:
    long = {"prompt": "Hi", "completion": "a b " * 50}
    lost = {"prompt": "a b " * 50, "completion": "Hi"}
    plan = make_plan(write_jsonl(tmp_path / "a.jsonl", [*ROWS[:5], long, lost]), max_length=64)
    made = prepare(plan, tmp_path / "data")
    assert made.manifest.rows_truncated == 1
    assert made.manifest.rows_dropped == {"truncated_answer": 1}
    assert max(len(ids) for ids, _ in documents(made.train_file)) == 64


def test_a_long_text_is_cut_into_pieces_and_none_of_it_is_lost(
    tmp_path: Path, make_plan: MakePlan, base_folder: Path
) -> None:
    text = "Hello there, how are you today? " * 40
    plan = make_plan(
        write_jsonl(tmp_path / "a.jsonl", [{"text": text}]), max_length=64, packing=False, seed=0
    )
    made = prepare(plan, tmp_path / "data")
    assert max(len(ids) for ids, _ in documents(made.train_file)) <= 64
    whole = load_tokenizer(base_folder)(text + "<|im_end|>").input_ids
    assert made.manifest.tokens == len(whole)
    assert made.manifest.rows_used == 1


def test_max_length_below_the_template_says_what_is_enough(
    file: Path, tmp_path: Path, make_plan: MakePlan
) -> None:
    with pytest.raises(DatasetError, match=r"max_length is 16.*Set it to \d+ or more") as caught:
        prepare(make_plan(file, max_length=16), tmp_path / "data")
    enough = int(caught.value.hint.split()[3])
    assert prepare(make_plan(file, max_length=enough), tmp_path / "data").manifest.rows_used


def test_no_usable_row_says_why_most_were_dropped(tmp_path: Path, make_plan: MakePlan) -> None:
    rows = [{"prompt": "Hi", "completion": ""}] * 3
    plan = make_plan(write_jsonl(tmp_path / "a.jsonl", rows))
    with pytest.raises(DatasetError, match=r"3 of 3 for the reason empty_answer: a\.jsonl, line 1"):
        prepare(plan, tmp_path / "data")


def test_a_file_that_changed_since_it_was_planned_is_refused(
    file: Path, tmp_path: Path, make_plan: MakePlan
) -> None:
    plan = make_plan(file)
    file.write_text(json.dumps(ROWS[0]) + "\n")
    with pytest.raises(DatasetError, match="changed after it was inspected"):
        prepare(plan, tmp_path / "data")


def test_progress_ends_with_all_rows(file: Path, tmp_path: Path, make_plan: MakePlan) -> None:
    seen: list[tuple[int, int]] = []
    prepare(make_plan(file), tmp_path / "data", lambda done, total: seen.append((done, total)))
    assert seen[-1] == (120, 120)
    shutil.rmtree(tmp_path / "data")
    plan = make_plan(file, max_rows=50)
    assert prepare(plan, tmp_path / "data").manifest.rows_read == 50


def test_runs_with_the_same_inputs_share_one_copy(
    file: Path, tmp_path: Path, make_plan: MakePlan
) -> None:
    shared = tmp_path / "prepared"
    one = prepare(make_plan(file), tmp_path / "one", shared=shared)
    seen: list[tuple[int, int]] = []
    two = prepare(make_plan(file), tmp_path / "two", lambda *done: seen.append(done), shared=shared)
    assert one.train_file.samefile(two.train_file)
    assert two.manifest == one.manifest == load_prepared(tmp_path / "two").manifest
    assert seen == [(120, 120)]
    other = prepare(make_plan(file, seed=9), tmp_path / "three", shared=shared)
    assert not other.train_file.samefile(one.train_file)
    assert [path.name for path in shared.iterdir() if path.name.startswith(".")] == []


def test_a_damaged_shared_copy_is_replaced_and_never_used(
    file: Path, tmp_path: Path, make_plan: MakePlan
) -> None:
    plan, shared = make_plan(file), tmp_path / "prepared"
    whole = prepare(plan, tmp_path / "one", shared=shared).manifest
    (entry,) = shared.iterdir()
    for name in ("train.arrow", "eval.arrow", "manifest.json"):
        (entry / name).unlink()
        (entry / name).write_bytes(b"x")
        assert prepare(plan, tmp_path / f"after-{name}", shared=shared).manifest == whole
        assert load_prepared(entry).manifest == whole


def test_shared_copies_that_no_run_uses_are_deleted_except_the_newest(
    file: Path, tmp_path: Path, make_plan: MakePlan
) -> None:
    shared = tmp_path / "prepared"
    for seed in range(6):
        prepare(make_plan(file, seed=seed), tmp_path / f"run{seed}", shared=shared)
    assert len(list(shared.iterdir())) == 6
    for seed in range(5):
        shutil.rmtree(tmp_path / f"run{seed}")
    prepare(make_plan(file, seed=6), tmp_path / "run6", shared=shared)
    assert len(list(shared.iterdir())) == 5  # of run 5, of run 6 and three more


def test_processes_that_prepare_the_same_at_once_do_no_harm(
    file: Path, tmp_path: Path, make_plan: MakePlan
) -> None:
    plan, shared = make_plan(file), tmp_path / "prepared"
    with ThreadPoolExecutor(4) as pool:
        names = [tmp_path / f"run{index}" for index in range(8)]
        made = list(pool.map(lambda name: prepare(plan, name, shared=shared).manifest, names))
    assert len({manifest.model_dump_json() for manifest in made}) == 1
    assert all(load_prepared(name).manifest == made[0] for name in names)


def test_what_a_killed_worker_left_goes_with_the_next_attempt(
    file: Path, tmp_path: Path, make_plan: MakePlan
) -> None:
    left = tmp_path / ".data.12ab34cd.part"
    left.mkdir()
    (left / "train.ids").write_bytes(b"x" * 100)
    prepare(make_plan(file), tmp_path / "data")
    assert not left.exists()


def test_each_row_is_trained_on_once_if_requested(tmp_path: Path, make_plan: MakePlan) -> None:
    repeated = write_jsonl(tmp_path / "twice.jsonl", [*ROWS, *ROWS[:30], *ROWS[:5]])
    twice = make_plan(repeated, eval_fraction=0)
    once = make_plan(repeated, eval_fraction=0, deduplicate=True)
    all_rows = prepare(twice, tmp_path / "data")
    assert all_rows.manifest.rows_used == 155
    made = prepare(once, tmp_path / "data")  # the key is another: the folder is made anew
    assert made.manifest.rows_used == 120
    assert made.manifest.rows_dropped["duplicate"] == 35
    found = documents(made.train_file)
    assert len(found) == len(set(found)) == 120
    assert set(found) == set(documents(all_rows.train_file))


def test_pieces_of_one_long_text_are_no_repeats_of_each_other(
    tmp_path: Path, make_plan: MakePlan
) -> None:
    texts = [{"text": "the same words again " * 200}, {"text": "another"}]
    file = write_jsonl(tmp_path / "books.jsonl", [*texts, texts[0]])
    plan = make_plan(file, max_length=128, eval_fraction=0, deduplicate=True)
    made = prepare(plan, tmp_path / "data")
    single = prepare(
        make_plan(write_jsonl(tmp_path / "b.jsonl", texts), max_length=128, eval_fraction=0),
        tmp_path / "single",
    )
    assert made.manifest.tokens == single.manifest.tokens
    assert made.manifest.rows_dropped["duplicate"] == 1


def test_cut_answers_are_left_out_if_requested(tmp_path: Path, make_plan: MakePlan) -> None:
    rows = [*ROWS, {"prompt": "Hi", "completion": "a b " * 200}]
    file = write_jsonl(tmp_path / "long.jsonl", rows)
    fields = {"max_length": 128, "eval_fraction": 0}
    assert prepare(make_plan(file, **fields), tmp_path / "a").manifest.rows_truncated == 1
    left = prepare(make_plan(file, **fields, drop_truncated=True), tmp_path / "b").manifest
    assert (left.rows_truncated, left.rows_used) == (0, 120)
    assert left.rows_dropped == {"answer_too_long": 1}


def test_a_share_of_the_rows_replaces_a_split_that_leaks(
    tmp_path: Path, make_plan: MakePlan
) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    write_jsonl(folder / "train.jsonl", [*ROWS, *ROWS[:20]])
    write_jsonl(folder / "test.jsonl", ROWS[:9])
    with pytest.raises(DatasetError, match="'test' can be used: 9 of them are also trained on"):
        prepare(make_plan(folder), tmp_path / "a")
    made = prepare(make_plan(folder, eval_fraction=0.1), tmp_path / "b")
    assert made.manifest.eval_rows == 12
    train, held = documents(made.train_file), documents(made.eval_file)
    assert not {ids for ids, _ in train} & {ids for ids, _ in held}


def test_what_a_killed_packing_left_is_removed_and_what_a_living_one_makes_is_not(
    tmp_path: Path, file: Path, make_plan: MakePlan
) -> None:
    shared = tmp_path / "prepared"
    packing = (
        "import sys, time; from pathlib import Path; from qlora_space.core.atomic import whole_folder\n"
        "with whole_folder(Path(sys.argv[1]), 'It') as part:\n"
        "    (part / 'train.arrow').touch(); print(part, flush=True); time.sleep(600)"
    )

    def start(name: str) -> tuple[subprocess.Popen[str], Path]:
        command = [sys.executable, "-c", packing, str(shared / name)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        return process, Path(process.stdout.readline().strip())

    (killed, left), (alive, made) = start("killed"), start("alive")
    try:
        killed.kill()
        killed.wait()
        assert left.is_dir()
        prepare(make_plan(file), tmp_path / "data", shared=shared)
        assert not left.exists()
        assert (made / "train.arrow").exists()
    finally:
        for process in (killed, alive):
            process.kill()
            process.communicate()


def test_rows_are_prepared_with_exactly_the_parts_and_the_instruction_of_the_plan(
    tmp_path: Path, make_plan: MakePlan, base_folder: Path
) -> None:
    rows = [
        {"text": f"Bridge {i}.", "label": i % 2, "system": f"Be short, {i}."} for i in range(60)
    ]
    file = write_jsonl(tmp_path / "a.jsonl", rows)
    plan = make_plan(file, columns="prompt=text,completion=label,system=", eval_fraction=0)
    made = prepare(plan, tmp_path / "data")
    decode = load_tokenizer(base_folder).decode
    texts = [decode(ids) for ids, _ in documents(made.train_file)]
    assert plan.columns == {"prompt": "text", "completion": "label"}
    assert all("It is one of: 0, 1.\n\nBridge" in text for text in texts)
    assert not any("Be short" in text for text in texts)
    assert "Be short" in str(prepare(make_plan(file), tmp_path / "other").eval_examples())


def test_another_instruction_is_other_data(tmp_path: Path, make_plan: MakePlan) -> None:
    file = write_jsonl(tmp_path / "a.jsonl", ROWS)
    keys = {
        prepare(make_plan(file, **fields), tmp_path / "data").manifest.key
        for fields in ({}, {"instruction": "Add."}, {"instruction": "Sum."})
    }
    assert len(keys) == 3


def test_pieces_of_a_held_out_text_are_counted_by_text(tmp_path: Path, make_plan: MakePlan) -> None:
    texts = [{"text": f"The ferry number {i} left the quay. " * 20} for i in range(40)]
    plan = make_plan(write_jsonl(tmp_path / "a.jsonl", texts), max_length=64, eval_fraction=0.1)
    made = prepare(plan, tmp_path / "data").manifest
    assert len(made.eval_pieces) == 4
    assert sum(made.eval_pieces) == made.eval_rows > 4
    assert not made.eval_texts_are_trained
    few = make_plan(write_jsonl(tmp_path / "b.jsonl", texts[:3]), max_length=64, eval_fraction=0.2)
    made = prepare(few, tmp_path / "few").manifest
    assert made.eval_texts_are_trained
    assert len(made.eval_pieces) == 3


def test_rows_that_are_not_cut_have_no_pieces(
    tmp_path: Path, file: Path, make_plan: MakePlan
) -> None:
    assert prepare(make_plan(file), tmp_path / "data").manifest.eval_pieces == ()


def test_whole_trees_of_messages_are_trained_as_conversations(
    tmp_path: Path, make_plan: MakePlan, base_folder: Path
) -> None:
    rows = [
        row
        for i in range(30)
        for row in (
            {"id": f"q{i}", "parent_id": None, "role": "prompter", "text": f"Bridge {i}?"},
            {"id": f"a{i}", "parent_id": f"q{i}", "role": "assistant", "text": f"Number {i}."},
            {"id": f"b{i}", "parent_id": f"q{i}", "role": "assistant", "text": f"It is {i}."},
        )
    ]
    plan = make_plan(write_jsonl(tmp_path / "a.jsonl", rows), eval_fraction=0)
    made = prepare(plan, tmp_path / "data")
    assert (made.manifest.rows_read, made.manifest.rows_used) == (60, 60)
    assert plan.dataset.num_rows == 60
    decode = load_tokenizer(base_folder).decode
    texts = [decode(ids) for ids, _ in documents(made.train_file)]
    assert sum("Number 7." in text and "Bridge 7?" in text for text in texts) == 1

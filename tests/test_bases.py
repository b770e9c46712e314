"""Everything that one does with a base, on a tiny checkpoint of every family, at 4 bits and at 3."""

from pathlib import Path

import pytest

from tests.base_trial import Trial, try_base
from tests.model.test_families import TRAINED, checkpoint, facts_of

# One of each kind: a text model inside of another, state beside attention, a linear of its own class, wide batches.
_QUICK = ("gemma3", "qwen3.5", "granite4", "falcon", "opt")
_REFERENCE = Path(__file__).parents[2] / "shared" / "reference"


def _slow_but(quick: tuple[str, ...], names: tuple[str, ...] = TRAINED) -> list:
    others = (pytest.param(n, marks=pytest.mark.slow) for n in names if n not in quick)
    return [*(n for n in quick if n in names), *others]


def _require_whole(trial: Trial) -> None:
    assert trial.is_whole, (trial.done, trial.refused, trial.crashed)
    notes = [event.text for event in trial.events if event.kind == "note"]
    assert any(note.startswith("The base has ") for note in notes)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", _slow_but(_QUICK))
def test_everything_that_one_does_with_a_base(name: str, tmp_path: Path) -> None:
    _require_whole(try_base(checkpoint(name), tmp_path))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", TRAINED)
def test_everything_at_3_bits_or_a_sentence_in_the_plan(name: str, tmp_path: Path) -> None:
    trial = try_base(checkpoint(name), tmp_path, bits=3, group_size=32)
    if facts_of(name).is_blockwise:
        return _require_whole(trial)
    assert trial.done == []
    assert trial.refused


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(not _REFERENCE.is_dir(), reason="the folder of references is not here")
def test_every_family_of_the_references_works_or_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(_REFERENCE))
    import tiny_bases  # type: ignore[import-not-found]

    crashed = {}
    for name in tiny_bases.names():
        trial = try_base(tiny_bases.build(name, tmp_path / name), tmp_path / f"{name}-home")
        if trial.crashed:
            crashed[name] = trial.crashed
    assert crashed == {}

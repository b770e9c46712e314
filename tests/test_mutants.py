"""benchmarks/mutants.py breaks the code by replacing text, which must be there."""

import runpy
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_text_that_each_mutant_replaces_is_in_its_file_once() -> None:
    mutants = runpy.run_path(str(ROOT / "benchmarks" / "mutants.py"))["MUTANTS"]
    assert mutants
    for mutant in mutants:
        assert (ROOT / mutant.file).read_text("utf-8").count(mutant.old) == 1, mutant.promise

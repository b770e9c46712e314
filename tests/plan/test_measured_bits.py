"""What the page expects of a width is what the tables of docs/figures say."""

import importlib.util
from pathlib import Path

from qlora_space.hub import model_facts
from qlora_space.plan import measured_bits
from qlora_space.plan.low_bit import measured_like

SCRIPT = Path(__file__).parents[2] / "docs" / "write_measured_bits.py"


def test_the_module_is_what_its_script_writes() -> None:
    spec = importlib.util.spec_from_file_location("write_measured_bits", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    written = Path(measured_bits.__file__).read_text()
    assert script.module() == written, "run python docs/write_measured_bits.py"


def test_every_base_has_every_width_once_and_stands_for_its_family_at_about_its_size() -> None:
    demo = model_facts("demo", None, None)
    for base in measured_bits.MEASURED_BASES:
        ways = [(width.bits, width.calibrated) for width in base.widths]
        assert sorted(ways) == [(2, True), (3, True), (4, False), (4, True)]
        same = demo.model_copy(
            update={"model_type": base.model_type, "parameters": 3 * base.parameters}
        )
        assert measured_like(same) is base
        assert measured_like(same.model_copy(update={"parameters": 8 * base.parameters})) is None
    assert measured_like(demo) is None, "much smaller ones lose more, much larger ones less"

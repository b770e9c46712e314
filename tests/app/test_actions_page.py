"""On one page a newer inspection ends an older one, and its Start waits for nobody's typing."""

import threading
import time
from pathlib import Path

from qlora_space.app.actions import Actions
from qlora_space.app.ui.draft import Draft, examine
from qlora_space.core.errors import Superseded
from qlora_space.core.settings import Settings
from qlora_space.core.visitor import THIS_MACHINE
from tests.app.ui.test_form import DEFAULTS
from tests.places.bombs import inspections
from tests.places.test_inspector import endless, until


def test_what_is_typed_next_does_not_wait_for_what_was_typed_before(tmp_path: Path) -> None:
    actions = Actions(Settings(home=tmp_path / "home"))
    try:
        page = actions.for_visitor(THIS_MACHINE, "page")
        other = actions.for_visitor(THIS_MACHINE, "another page")
        older: list[Draft] = []
        values = DEFAULTS | {"dataset": endless(tmp_path)}
        thread = threading.Thread(target=lambda: older.append(examine(page, values, Draft())))  # type: ignore[arg-type]
        thread.start()
        until(inspections, 60)
        assert examine(other, DEFAULTS, Draft()).plan, "another page has its own"
        assert thread.is_alive()
        began = time.monotonic()
        newer = examine(page, DEFAULTS | {"max_length": 64}, Draft())  # type: ignore[arg-type]
        thread.join(20)
        assert newer.plan
        assert isinstance(older[0].settings_error or older[0].data_error, Superseded)
        assert time.monotonic() - began < 20
    finally:
        actions.close()

"""Where in the page one is, as it stands in the URL: `run=ID&view=compare`. Untrusted text."""

from dataclasses import dataclass
from urllib.parse import parse_qs, urlencode

PAGES = ("run", "compare", "publish")


@dataclass(frozen=True)
class Address:
    run_id: str = ""
    page: str = "run"

    def __str__(self) -> str:
        return urlencode({"run": self.run_id, "view": self.page}) if self.run_id else ""


def parse_address(query: str) -> Address:
    """Anything unknown is the page "New run" or the run's first page."""
    found = {name: values[-1] for name, values in parse_qs(query.removeprefix("?")).items()}
    page = found.get("view", "run")
    return Address(found.get("run", "")[:64], page if page in PAGES else "run")

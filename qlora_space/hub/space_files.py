"""The files of a Space that runs this app, out of a checkout, a Space of its own, or the package that pip installed.

A Space gets its settings from the front matter of README.md, its libraries from requirements.txt, and starts app.py.
"""

import re
from importlib import metadata
from pathlib import Path

from qlora_space import __version__
from qlora_space.core.errors import HubError
from qlora_space.hub.files import PublishedFile, hashed

PACKAGE_FOLDER = "qlora_space"
_PACKAGE = Path(__file__).parents[1]
_SUFFIXES = (".css", ".jinja", ".js", ".json", ".jsonl", ".py", ".safetensors", ".svg")
_PLATFORM_BRINGS = re.compile(r"(gradio|spaces|huggingface[-_]hub)\b", re.IGNORECASE)
APP = '''"""Serve the page: on this machine, or as a Hugging Face Space."""

import os
import sys

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

from qlora_space.app.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["app"]))
'''
_README = """---
{front_matter}
---

# qlora_space {version}

Fine-tune a large language model from the browser. Deployed by `qlora-space deploy --to OWNER/NAME`: the same
command brings a newer version, in one commit, and leaves your variables, secrets and hardware as they are.

- The disk of a Space is lost when it restarts: publish adapters, and mirror runs to a private repository.
- Hardware that is paid by the hour is billed until the Space sleeps or is paused, whether anybody trains or not.
"""


def space_files(package: Path = _PACKAGE) -> tuple[PublishedFile, ...]:
    """README.md, app.py, requirements.txt, the licence and the package. Raises HubError if they cannot be had."""
    top = _top_from_folder(package.parent) or _top_from_metadata()
    texts = {**top, "app.py": APP}
    named = {name: text.encode() for name, text in texts.items()} | _package_files(package)
    return tuple(hashed(name, source) for name, source in sorted(named.items()))


def _top_from_folder(root: Path) -> dict[str, str] | None:
    """Of a checkout or a running Space; None if the package stands alone, as pip installs it."""
    if not all((root / name).is_file() for name in ("README.md", "app.py", "requirements.txt")):
        return None
    names = [n for n in ("requirements.txt", "LICENSE") if (root / n).is_file()]
    texts = {name: (root / name).read_text("utf-8") for name in names}
    return {**texts, "README.md": _readme((root / "README.md").read_text("utf-8"))}


def _top_from_metadata() -> dict[str, str]:
    try:
        installed = metadata.distribution("qlora-space")
    except metadata.PackageNotFoundError:
        raise HubError(
            "The files of a Space are missing: this is neither a checkout nor an installed package.",
            "Install it with pip, or run the command in a checkout.",
        ) from None
    wanted = [r for r in installed.requires or () if "extra ==" not in r]
    own = sorted(r for r in wanted if not _PLATFORM_BRINGS.match(r))
    found = {
        "README.md": _readme(installed.metadata["Description"]),
        "requirements.txt": "\n".join(own) + "\n",
        "LICENSE": installed.read_text("licenses/LICENSE") or "",
    }
    return {name: text for name, text in found.items() if text}


def _readme(text: str) -> str:
    """The Space's README: the front matter of ours, and what its owner needs to know."""
    match = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    if match is None:
        raise HubError("README.md has no front matter, which is a Space's configuration.", "")
    return _README.format(front_matter=match[1], version=__version__)


def _package_files(package: Path) -> dict[str, Path]:
    """Sources and data of the package; never a hidden file, a cache, or a file of a kind that it does not have."""
    paths = (p.relative_to(package) for p in package.rglob("*") if p.is_file())
    kept = (p for p in paths if p.suffix in _SUFFIXES and not any(x[0] == "." for x in p.parts))
    return {f"{PACKAGE_FOLDER}/{p.as_posix()}": package / p for p in kept}

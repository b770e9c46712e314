"""Write the tables of README.md: `python docs/write_options.py`.

Options are the fields of TrainingRequest, the variables of a Space those of Limits.
"""

from pathlib import Path

from qlora_space.core.limits import Limits
from qlora_space.core.request import TrainingRequest

README = Path(__file__).parents[1] / "README.md"
_PLACES = (  # read in core/settings.py and app/ui/server.py
    (
        "HOME",
        "`~/.local/share/qlora-space`",
        "Folder of runs, uploads and logs; a storage bucket of a Space is at `/data`.",
    ),
    (
        "CODE",
        "on a Space that Space",
        "Space from which a job gets this program: OWNER/NAME, or OWNER/NAME@COMMIT.",
    ),
    (
        "HOSTS",
        "none",
        "Further host names that a Space answers to, such as a domain of its own, with commas between them.",
    ),
)


def option_table() -> str:
    """One row per field: flag, default, description."""
    lines = ["| option | default | effect |", "|---|---|---|"]
    for name, field in TrainingRequest.model_fields.items():
        default = "chosen for you" if field.default is None else f"`{_shown(field.default)}`"
        lines.append(f"| `--{name.replace('_', '-')}` | {default} | {field.description} |")
    return "\n".join(lines) + "\n"


def variable_table() -> str:
    """One row per environment variable: name, default, description."""
    lines = ["| variable | default | effect |", "|---|---|---|"]
    limits = [
        (name.upper(), f"`{_shown(field.default)}`", field.description)
        for name, field in Limits.model_fields.items()
    ]
    for name, default, description in (*_PLACES, *limits):
        lines.append(f"| `QLORA_SPACE_{name}` | {default} | {description} |")
    return "\n".join(lines) + "\n"


def _shown(value: object) -> str:
    return (
        {True: "on", False: "off"}.get(value, str(value)) if isinstance(value, bool) else str(value)
    )


def with_tables(text: str) -> str:
    """The README with the tables of today."""
    for name, table in (("options", option_table()), ("variables", variable_table())):
        begin = f"<!-- {name}: written by docs/write_options.py -->\n"
        end = f"<!-- end of {name} -->"
        head, rest = text.split(begin)
        text = head + begin + table + end + rest.split(end)[1]
    return text


if __name__ == "__main__":
    README.write_text(with_tables(README.read_text("utf-8")), "utf-8")

"""Write the option table of README.md from the fields of TrainingRequest: `python docs/write_options.py`."""

from pathlib import Path

from qlora_space.core.request import TrainingRequest

README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- options: written by docs/write_options.py -->\n", "<!-- end of options -->"


def option_table() -> str:
    """One row per field: flag, default, description."""
    lines = ["| option | default | effect |", "|---|---|---|"]
    for name, field in TrainingRequest.model_fields.items():
        default = "chosen for you" if field.default is None else f"`{_shown(field.default)}`"
        lines.append(f"| `--{name.replace('_', '-')}` | {default} | {field.description} |")
    return "\n".join(lines) + "\n"


def _shown(value: object) -> str:
    return (
        {True: "on", False: "off"}.get(value, str(value)) if isinstance(value, bool) else str(value)
    )


def with_table(text: str) -> str:
    """The README with the table of today."""
    head, rest = text.split(BEGIN)
    return head + BEGIN + option_table() + END + rest.split(END)[1]


if __name__ == "__main__":
    README.write_text(with_table(README.read_text("utf-8")), "utf-8")

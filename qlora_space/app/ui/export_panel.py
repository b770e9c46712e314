"""Files of a run: small ones at once, models that have to be made first with how far they are from the adapter."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.components import Component

from qlora_space.app.actions import Actions
from qlora_space.app.exporting import export, exports
from qlora_space.app.ui.boundary import as_qlora_space_error, for_visitor
from qlora_space.app.ui.downloads import download_links, export_link
from qlora_space.app.ui.navigation import run_at
from qlora_space.app.ui.publish_export_panel import (
    PublishExport,
    build_publish_export,
    wire_publish_export,
)
from qlora_space.app.ui.render.html import error_notice, notice, table
from qlora_space.core.export import RECIPES, Exported, Exporting, ExportOptions
from qlora_space.core.parsing import parse_values
from qlora_space.core.wording import age, counted, num_bytes, percent, significant
from qlora_space.runs import RunFolder

_PRIVATE: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
FORMATS = {
    "merged": "One 16-bit model (transformers, vLLM)",
    "merged-nf4": "One 4-bit model, NF4 (transformers)",
    "merged-gptq": "One 4-bit model, GPTQ (transformers with gptqmodel)",
    "gguf": "One 8-bit file (llama.cpp, Ollama)",
    "gguf-adapter": "The adapter for a GGUF of the base (llama.cpp)",
    "trl": "The run as a trl script",
    "axolotl": "The run as an Axolotl YAML",
    "llama-factory": "The run as a LLaMA-Factory YAML",
}


@dataclass(frozen=True)
class ExportPanel:
    links: gr.HTML
    group: gr.Column
    format: gr.Dropdown
    make: gr.Button
    outcome: gr.HTML
    publish: PublishExport

    @property
    def outputs(self) -> list[Component]:
        own = [self.links, self.group, self.outcome]
        return [*own, *self.publish.outputs]  # type: ignore[list-item]

    def updates(self, run: RunFolder) -> dict[Any, Any]:
        """What this run can be downloaded as."""
        return {
            self.links: download_links(run.id, has_adapter=run.has_adapter),
            self.group: gr.update(visible=run.has_adapter),
            self.outcome: made(run),
            **self.publish.updates(run),
        }


def build_export_panel() -> ExportPanel:
    links = gr.HTML(elem_id="downloads")
    with gr.Column(visible=False, elem_classes="sheet", elem_id="export-panel") as group:
        gr.HTML(
            '<h3 class="panel-title">Export</h3><p class="hint">Base and adapter become one model, whose answers to '
            "held-out prompts are compared with those of the adapter; or the run becomes a recipe for other "
            "programs.</p>"
        )
        with gr.Row():
            kind = gr.Dropdown(
                [(words, name) for name, words in FORMATS.items()],
                label="Format",
                elem_id="export-format",
                min_width=260,
            )
            make = gr.Button("Export", scale=0, min_width=130, size="md", elem_id="export")
        outcome = gr.HTML(elem_id="exported")
        publish = build_publish_export()
    return ExportPanel(links, group, kind, make, outcome, publish)


def wire_export_panel(actions: Actions, panel: ExportPanel, address: gr.Textbox) -> None:
    @for_visitor(actions)
    def make(acting: Actions, query: str, kind: str) -> Iterator[dict[Any, Any]]:
        run = run_at(acting, query)
        yield {
            panel.make: gr.update(interactive=False),
            panel.outcome: notice("info", "Starting …"),
        }
        to_publish: dict[Any, Any] = {}
        try:
            for reply in export(acting, run, parse_values(ExportOptions, {"format": kind})):
                if isinstance(reply, Exporting):
                    yield {panel.outcome: notice("info", _progress(reply))}
            shown, to_publish = made(run), panel.publish.updates(run)
        except Exception as error:
            shown = error_notice(as_qlora_space_error(error)) + made(run)
        yield {panel.make: gr.update(interactive=True), panel.outcome: shown} | to_publish

    wire_publish_export(actions, panel.publish, address)
    # One at a time: each may fill the memory.
    panel.make.click(
        make,
        [address, panel.format],
        [panel.make, panel.outcome, *panel.publish.outputs],
        concurrency_limit=1,
        trigger_mode="once",
        **_PRIVATE,
    )


def _progress(reply: Exporting) -> str:
    share = f", {percent(reply.done / reply.total)}" if reply.total else ""
    return f"{reply.text}{share} …"


def made(run: RunFolder) -> str:
    """The exports that are kept with the run, with links; '' without one."""
    found = exports(run)
    if not found:
        return ""
    rows = [
        (
            FORMATS[each.options.format],
            num_bytes(each.num_bytes),
            age(each.time),
            _same_words(each),
            _losses(each),
        )
        for each in found
    ]
    heads = ("Format", "Size", "Made", "Compared with the adapter", "Loss (adapter)")
    links = " · ".join(
        export_link(run.id, each.options.format, FORMATS[each.options.format]) for each in found
    )
    return f'{table(heads, rows, "Exports")}<p class="downloads">Download: {links}</p>'


def _same_words(each: Exported) -> str:
    if each.options.format in RECIPES:
        return each.in_words()
    found, check = each.agreement, each.llama_cpp
    words = []
    if found is not None:
        share = f"same next token at {percent(found.top1)} of {found.tokens:,}"
        words.append(share if found.is_finite else "not finite numbers")
    if check is not None:
        words.append(
            f"llama.cpp: {check.same_answers} of {counted(check.prompts, 'answer')} the same"
        )
    return "; ".join(words) or f"not compared: {each.why_not_measured}"


def _losses(each: Exported) -> str:
    found = each.agreement
    if found is None or found.loss is None or found.adapter_loss is None:
        return ""
    return f"{significant(found.loss)} ({significant(found.adapter_loss)})"

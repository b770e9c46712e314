"""The files of a demo Space: some 90 lines of gradio, transformers and peft that anybody can read and change."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import SpaceCardData

from qlora_space.core.comparison import Question
from qlora_space.core.demo import BASE_FOLDER, DEMO
from qlora_space.core.options import Format
from qlora_space.core.request import TrainingRequest
from qlora_space.hub.card.escape import inline
from qlora_space.hub.card.how_to_load import auto_class, quantization_code
from qlora_space.hub.card.model_card import base_name, dataset_name, hub_datasets
from qlora_space.hub.download import PACKED_FOLDER, RECORD_FILE
from qlora_space.hub.files import PublishedFile, hashed
from qlora_space.plan import Plan
from qlora_space.runs import RunFolder
from qlora_space.runs.publication import SpaceHardware

GRADIO, _PYTHON = "6.31.0", "3.12"
_VERSION = re.compile(r"\d+(\.\d+)+")
_MOST_EXAMPLES, _MOST_EXAMPLE_CHARACTERS = 3, 300
_MOST_QUESTIONS = 10_000  # read for what they share
_MOST_GIB_OF_A_SHORT_CALL = 10.0  # loaded within a minute

_APP = '''"""{title}

Made by qlora_space; change it as you like.
"""

import functools
{imports}

BASE, BASE_REVISION = {base}, {base_revision}
ADAPTER, ADAPTER_REVISION = {adapter}, {adapter_revision}
HEADING = {heading}
EXAMPLES = {examples}
{system}ENDS = {ends}  # tokens that end an answer, beside the model's own
{downloads}

@functools.cache
def load():
    """The model with its adapter, and the tokenizer: once in a process."""
    {quantization}base = {auto}.from_pretrained(
        BASE,
        revision=BASE_REVISION,
        use_safetensors=True,
        {precision},
    )
    model = PeftModel.from_pretrained(base, ADAPTER, revision=ADAPTER_REVISION)
    tokenizer = AutoTokenizer.from_pretrained(ADAPTER, revision=ADAPTER_REVISION)
    return model.eval(), tokenizer


def answer(model, tokenizer, prompt, max_new_tokens):
    """What the model writes, greedily: the same answer each time."""
    {tokens}
    inputs = inputs.to(model.device)
    own = model.generation_config.eos_token_id
    ends = [*(own if isinstance(own, list) else [own]), *ENDS]
    ends = sorted({{each for each in ends if each is not None}})
    with torch.inference_mode():
        written = model.generate(
            **inputs,
            max_new_tokens=int(max_new_tokens),
            do_sample=False,
            eos_token_id=ends or None,
            pad_token_id=ends[0] if ends else None,
        )
    start = inputs["input_ids"].shape[1]
    return tokenizer.decode(written[0, start:], skip_special_tokens=True)


{decorator}def compare(prompt, max_new_tokens):
    """The answer of the base, then that of the same base with the adapter."""
    if not prompt.strip():
        raise gr.Error("Write a prompt first.")
    model, tokenizer = load()
    with model.disable_adapter():
        before = answer(model, tokenizer, prompt, max_new_tokens)
    yield before, ""
    yield before, answer(model, tokenizer, prompt, max_new_tokens)


with gr.Blocks(title={title_literal}) as page:
    gr.Markdown(HEADING)
    prompt = gr.Textbox(label="Prompt", lines=3, max_length=4000)
    longest = gr.Slider(16, 512, value=128, step=16, label="Longest answer in tokens")
    run = gr.Button("Run both models", variant="primary")
    with gr.Row():
        panes = [gr.Textbox(label=name, lines=8) for name in ("Base", "Adapted")]
    if EXAMPLES:
        gr.Examples([[each] for each in EXAMPLES], prompt)
    run.click(compare, [prompt, longest], panes, api_name="compare")

{at_start}if __name__ == "__main__":
    page.launch()
'''
_DOWNLOADS = """
# Before a visitor's GPU time counts.
FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]
snapshot_download(BASE, revision=BASE_REVISION, allow_patterns=FILES)
snapshot_download(ADAPTER, revision=ADAPTER_REVISION, allow_patterns=FILES)
"""
_TURNS = 'turns = [{"role": "user", "content": prompt}]'
# As it was trained: a template without a system turn has that text before the question.
_SYSTEM_TURNS = """turns = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": prompt}]
    try:
        has_system = SYSTEM.strip() in tokenizer.apply_chat_template(turns, tokenize=False)
    except Exception:  # the template refuses a system turn
        has_system = False
    if not has_system:
        turns = [{"role": "user", "content": f"{SYSTEM}\\n\\n{prompt}"}]"""


@dataclass(frozen=True)
class DemoSpace:
    """What is in its files. `notes`: for its owner, in its README."""

    name: str
    repo: str
    adapter: str
    adapter_revision: str
    hardware: SpaceHardware
    bits: int
    base_gib: float
    notes: tuple[str, ...]


def demo_files(
    space: DemoSpace, run: RunFolder, plan: Plan, request: TrainingRequest
) -> tuple[PublishedFile, ...]:
    """README.md, app.py, requirements.txt and the record; the files of the demo's base too, which no Hub has."""
    texts = {
        "README.md": _readme(space, plan, request),
        "app.py": app_code(space, run, plan),
        "requirements.txt": _requirements(space, _versions(run)),
    }
    sources: dict[str, Path | bytes] = {name: text.encode() for name, text in texts.items()}
    if plan.base.source == DEMO:
        files = (file for file in BASE_FOLDER.iterdir() if file.is_file())
        sources |= {f"{PACKED_FOLDER}/{file.name}": file for file in files}
    record = {
        "run_id": run.id,
        "what": "demo-space",
        "files": sorted(sources),
        "adapter": space.adapter,
        "adapter_revision": space.adapter_revision,
    }
    sources[RECORD_FILE] = json.dumps(record, indent=1).encode()
    return tuple(hashed(name, source) for name, source in sources.items())


def literal(text: str | None) -> str:
    """As Python source in ASCII: no text ends the string, or shows as other text than it is."""
    if text is None:
        return "None"
    escaped = text.encode("unicode_escape").decode().replace('"', '\\"')
    return f'"{escaped}"'


def app_code(space: DemoSpace, run: RunFolder, plan: Plan) -> str:
    """app.py"""
    is_gpu, is_demo = space.hardware == "zero-a10g", plan.base.source == DEMO
    quantization = quantization_code(plan, space.bits) if is_gpu else ""
    title = f"{space.adapter}: base and adapter"
    questions, system = _questions(run, plan)
    base = f'str(Path(__file__).with_name("{PACKED_FOLDER}"))' if is_demo else literal(plan.base.id)
    return _APP.format(
        title=f"Base and adapter answer side by side: {space.adapter}.",
        title_literal=literal(title),
        imports=_imports(plan, quantization, is_gpu=is_gpu, is_demo=is_demo),
        base=base,
        base_revision="None" if is_demo else literal(plan.base.sha),
        adapter=literal(space.adapter),
        adapter_revision=literal(space.adapter_revision),
        heading=_lines(_heading(space, plan)),
        examples=_list([literal(each) for each in _examples(questions)]),
        system=f"SYSTEM = {literal(system)}  # of every row of the data\n" if system else "",
        ends=list(run.stop_token_ids()),
        downloads=_DOWNLOADS if is_gpu and not is_demo else "",
        quantization=f"{_indented(quantization)}\n    " if quantization else "",
        auto=auto_class(plan),
        precision=_precision(plan, quantization, is_gpu=is_gpu),
        tokens=_tokens(run, plan, system),
        decorator=f"@spaces.GPU(duration={_seconds(space)})\n" if is_gpu else "",
        at_start="" if is_gpu else "load()  # so that the first visitor does not wait for it\n",
    )


def _imports(plan: Plan, quantization: str, *, is_gpu: bool, is_demo: bool) -> str:
    """Sorted as ruff sorts them; `spaces` patches torch, so it comes before."""
    configs = [name for name in ("BitsAndBytesConfig", "Mxfp4Config") if name in quantization]
    names = ", ".join(sorted([auto_class(plan), "AutoTokenizer", *configs]))
    return "\n".join(
        [
            *(["from pathlib import Path"] if is_demo else []),
            "",
            "import gradio as gr",
            *(["import spaces"] if is_gpu else []),
            "import torch",
            *(["from huggingface_hub import snapshot_download"] if is_gpu and not is_demo else []),
            "from peft import PeftModel",
            f"from transformers import {names}",
        ]
    )


def _precision(plan: Plan, quantization: str, *, is_gpu: bool) -> str:
    parts = ["quantization_config=quantization"] if quantization else ["dtype=torch.bfloat16"]
    parts += ['device_map="cuda"'] if is_gpu else []
    # Others than eager would leave the cap of its attention out, or refuse.
    parts += ['attn_implementation="eager"'] if plan.base.eager_attention else []
    return ",\n        ".join(parts)


def _is_chat(run: RunFolder, plan: Plan) -> bool:
    return Format(plan.dataset.format) is not Format.TEXT and has_template(run.adapter_folder)


def _tokens(run: RunFolder, plan: Plan, system: str) -> str:
    """A base without a template goes on from the text, as does a run on plain text."""
    if not _is_chat(run, plan):
        return 'inputs = tokenizer(prompt, return_tensors="pt")'
    return (
        f"{_SYSTEM_TURNS if system else _TURNS}\n"
        "    inputs = tokenizer.apply_chat_template(\n"
        '        turns, add_generation_prompt=True, return_dict=True, return_tensors="pt"\n'
        "    )"
    )


def has_template(folder: Path) -> bool:
    """Whether the tokenizer in that folder has a chat template."""
    if (folder / "chat_template.jinja").is_file():
        return True
    config = folder / "tokenizer_config.json"
    return config.is_file() and bool(json.loads(config.read_bytes()).get("chat_template"))


def _questions(run: RunFolder, plan: Plan) -> tuple[list[Question], str]:
    """Held-out ones that the page can ask as they are, without earlier turns, and the system text that all rows share,
    or ''. Nothing of a dataset that not everybody may read."""
    if not plan.dataset.is_public:
        return [], ""
    heldout = run.heldout_questions(_MOST_QUESTIONS)
    systems = {each.system for each in heldout}
    system = systems.pop() if len(systems) == 1 and _is_chat(run, plan) else ""
    return [q for q in heldout if not q.history and q.system == system], system


def _examples(questions: Sequence[Question]) -> list[str]:
    prompts = (each.prompt for each in questions)
    short = [each for each in prompts if each.strip() and len(each) <= _MOST_EXAMPLE_CHARACTERS]
    return list(dict.fromkeys(short))[:_MOST_EXAMPLES]


def _heading(space: DemoSpace, plan: Plan) -> list[str]:
    adapter = f"[{space.adapter}](https://huggingface.co/{space.adapter})"
    return [
        f"# {inline(space.name)}\n\n",
        f"The base: {base_name(plan)}. ",
        f"The adapter on it: {adapter}.",
    ]


def _lines(texts: list[str]) -> str:
    """Literals below each other, which Python joins."""
    lines = "".join(f"\n    {literal(each)}" for each in texts)
    return f"({lines}\n)"


def _list(literals: list[str]) -> str:
    return "[" + "".join(f"\n    {each}," for each in literals) + ("\n]" if literals else "]")


def _indented(code: str) -> str:
    return code.replace("\n", "\n    ")


def _seconds(space: DemoSpace) -> int:
    """Asked of ZeroGPU for one comparison: the first one of a process loads the base too."""
    return 60 if space.base_gib <= _MOST_GIB_OF_A_SHORT_CALL else 120


def _versions(run: RunFolder) -> Mapping[str, str]:
    report = run.report()
    return report.versions if report else {}


def _requirements(space: DemoSpace, versions: Mapping[str, str]) -> str:
    """The releases that trained the adapter; torch, gradio and spaces are the platform's."""
    names = ["accelerate", *(["bitsandbytes"] if space.bits < 16 else []), "peft", "transformers"]
    pinned = [f"{n}=={v}" if _VERSION.fullmatch(v := versions.get(n, "")) else n for n in names]
    return "\n".join([*pinned, "torch"]) + "\n"


def _readme(space: DemoSpace, plan: Plan, request: TrainingRequest) -> str:
    on_hub = [plan.base.id] if plan.base.source == "hub" else []
    datasets = hub_datasets(plan, request)
    data = SpaceCardData(
        title=re.sub(r"[^A-Za-z0-9 ._-]+", " ", space.name).strip()[:60] or "Demo",
        sdk="gradio",
        sdk_version=GRADIO,
        python_version=_PYTHON,
        app_file="app.py",
        short_description="A base and its adapter, side by side",
        models=[space.adapter, *on_hub],
        datasets=datasets,
        tags=["qlora", "peft", "lora", "qlora-space"],
    )
    adapter = (
        f"[{space.adapter}](https://huggingface.co/{space.adapter}/tree/{space.adapter_revision})"
    )
    notes = "\n".join(f"- {inline(each)}" for each in space.notes)
    return (
        f"---\n{data.to_yaml()}\n---\n\n# {inline(space.name)}\n\n"
        f"{base_name(plan)} answers beside the same base with the adapter {adapter}, which was trained on "
        f"{dataset_name(plan, request)}. Made by qlora_space; the code needs gradio, transformers and peft only.\n\n"
        f"{notes}\n"
    )

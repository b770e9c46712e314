"""The card of a run that is published as one model: what it is, how to load it, and how far it is from the adapter."""

from huggingface_hub import ModelCardData

from qlora_space.core.export import Exported, ModelFormat
from qlora_space.core.request import TrainingRequest
from qlora_space.hub.card.escape import inline
from qlora_space.hub.card.how_to_load import loading_code_of_model
from qlora_space.hub.card.model_card import (
    base_name,
    before_and_after,
    dataset_name,
    hub_datasets,
    license_of,
    limits,
)
from qlora_space.plan import Plan
from qlora_space.runs import Report

# As the Hub's model tree knows them: an adapter merged into its base, and what is stored in fewer bits.
_RELATIONS: dict[ModelFormat, str] = {
    "merged": "merge",
    "merged-nf4": "quantized",
    "merged-gptq": "quantized",
    "gguf": "quantized",
    "gguf-adapter": "adapter",
}
_LIBRARIES: dict[ModelFormat, str] = {
    "merged": "transformers",
    "merged-nf4": "transformers",
    "merged-gptq": "transformers",
}
_WHAT: dict[ModelFormat, str] = {
    "merged": "One model in 16 bits",
    "merged-nf4": "One model in 4 bits (NF4), as transformers loads it",
    "merged-gptq": "One model in GPTQ's format, calibrated at most half on rows of the training, else on general text",
    "gguf": "One GGUF file for llama.cpp and Ollama",
    "gguf-adapter": "A GGUF adapter for llama.cpp, to be used on a 16-bit GGUF of its base",
}


def export_card(
    plan: Plan,
    report: Report,
    request: TrainingRequest,
    exported: Exported,
    repo: str,
    adapter: str,
) -> str:
    """README.md. `adapter`: the repository where everybody can read the adapter that is in it; '' without one."""
    kind = exported.options.format
    assert kind in _WHAT
    parts = [
        f"---\n{_front_matter(plan, request, kind, adapter)}\n---",
        f"# {inline(plan.name)}",
        _introduction(plan, request, kind, adapter),
        f"## How to load it\n\n{_how_to_load(plan, exported, repo)}",
        f"## How close it is to the adapter\n\n{exported.in_words()}",
        before_and_after(report),
        limits(plan, report),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front_matter(plan: Plan, request: TrainingRequest, kind: ModelFormat, adapter: str) -> str:
    on_hub = plan.base.source == "hub"
    bases = [plan.base.id, *([adapter] if adapter and kind != "gguf-adapter" else [])]
    data = ModelCardData(
        library_name=_LIBRARIES.get(kind),
        base_model=bases if on_hub else None,
        base_model_relation=_RELATIONS[kind] if on_hub else None,
        datasets=hub_datasets(plan, request),
        license=license_of(plan),
        pipeline_tag="text-generation",
        tags=["qlora", "qlora-space", *(["gguf"] if kind in ("gguf", "gguf-adapter") else [])],
    )
    return data.to_yaml()


def _introduction(plan: Plan, request: TrainingRequest, kind: ModelFormat, adapter: str) -> str:
    made = f"[this adapter](https://huggingface.co/{adapter})" if adapter else "a LoRA adapter"
    verb = "made of" if kind == "gguf-adapter" else "with"
    return (
        f"{_WHAT[kind]}: {base_name(plan)} {verb} {made}, which was trained on {dataset_name(plan, request)}, "
        "using qlora_space."
    )


def _how_to_load(plan: Plan, exported: Exported, repo: str) -> str:
    match exported.options.format:
        case "merged":
            python = loading_code_of_model(plan, repo, exported.dtype)
            return (
                f"```sh\npip install transformers accelerate\n```\n\n```python\n{python}\n```\n\nOr with vLLM:\n\n"
                f"```sh\nvllm serve {repo}\n```"
            )
        case "merged-nf4":
            python = loading_code_of_model(plan, repo, "")
            return (
                "```sh\npip install transformers accelerate bitsandbytes\n```\n\n"
                f"```python\n{python}\n```"
            )
        case "merged-gptq":
            python = loading_code_of_model(plan, repo, "")
            return (
                "```sh\npip install transformers accelerate gptqmodel optimum\n```\n\n"
                f"```python\n{python}\n```"
            )
        case "gguf":
            return (
                f"```sh\nllama-server -hf {repo}\n```\n\nFor Ollama, with the chat template and the ends of answers of "
                f"training:\n\n```sh\nhf download {repo} --local-dir model\nollama create my-model -f model/Modelfile\n"
                "ollama run my-model\n```"
            )
        case _:
            return (
                f"```sh\nhf download {repo} --local-dir adapter\n"
                "llama-server -m BASE-f16.gguf --lora adapter/adapter.gguf\n```\n\n"
                "BASE-f16.gguf is the base in 16 bits, which llama.cpp's convert_hf_to_gguf.py makes."
            )

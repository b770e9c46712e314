"""The card's section "How to load it": what to install, and the code that loads base and adapter as in training.

A base of 4 bits or more is loaded by transformers, the adapter by peft: nothing of ours is needed. A base of 3 bits or
less needs qlora_space. No package index has it, so the card names its source; see `source_of`.
"""

import json
import os
import re
from importlib.metadata import PackageNotFoundError, distribution

from qlora_space import __version__
from qlora_space.core.demo import DEMO
from qlora_space.hub.connection import is_repo_id
from qlora_space.plan import Plan
from qlora_space.plan.memory import bits_per_weight

_COMMIT = re.compile(r"[0-9a-f]{40}")
# No user and no token can be in it.
_PUBLIC_ADDRESS = re.compile(r"https://[\w.-]+(:\d+)?(/[\w.~-]+)+")
_READERS = {
    "gptq": "optimum gptqmodel",
    "bitsandbytes": "bitsandbytes",
    "AWQ": "gptqmodel",
    "compressed-tensors": "compressed-tensors",
}
_SOURCE_FOLDER = "path/to/qlora_space"
_NF4 = """quantization = BitsAndBytesConfig(
    load_in_4bit=True,
    bnb_4bit_quant_type="nf4",
    bnb_4bit_use_double_quant=True,
    bnb_4bit_compute_dtype="bfloat16",
)"""
_SHOW = "from qlora_space.experts import visible_experts"
# Other quantizers cannot be put on top of the experts' own.
_MXFP4 = "quantization = Mxfp4Config(dequantize=True)"
_INT8 = "quantization = BitsAndBytesConfig(load_in_8bit=True)"


def how_to_load(plan: Plan, repo: str, *, for_16_bit: bool, with_base: bool) -> str:
    """The whole section, for the kind of publication that `publish_run` was asked for."""
    code = loading_code(plan, repo, for_16_bit=for_16_bit, with_base=with_base)
    if with_base:
        return _section(_why_packed_base(plan), install_ours(), code)
    if plan.is_low_bit and not for_16_bit:
        return _section(_why_pack_again(plan), install_ours(), code)
    return _section("", _install_plain(plan, _plain_bits(plan, for_16_bit=for_16_bit)), code)


def loading_code(plan: Plan, repo: str, *, for_16_bit: bool, with_base: bool) -> str:
    """The Python of the section: it makes `model` and `tokenizer`."""
    if with_base:
        lines = _load_packed(plan, repo)
    elif plan.is_low_bit and not for_16_bit:
        lines = _load_quantized(plan, repo)
    else:
        lines = _load_plain(plan, repo, _plain_bits(plan, for_16_bit=for_16_bit))
    return "\n".join(lines)


def loading_code_of_model(plan: Plan, repo: str, dtype: str) -> str:
    """The Python that makes `model` and `tokenizer` of an export as one checkpoint; `dtype`: '' as it is stored."""
    auto = auto_class(plan)
    options = [f'dtype="{dtype}"'] if dtype else []
    options += ['attn_implementation="eager"'] if plan.base.eager_attention else []
    arguments = ", ".join([f'"{repo}"', *options])
    return "\n".join(
        [
            f"from transformers import {auto}, AutoTokenizer",
            "",
            f"model = {auto}.from_pretrained({arguments})",
            _load_tokenizer(repo),
        ]
    )


def _plain_bits(plan: Plan, *, for_16_bit: bool) -> int:
    is_stored_packed = plan.base.quantization or plan.base.read_as  # transformers reads it as it is
    return 16 if for_16_bit or is_stored_packed else plan.bits


def _section(why: str, install: str, code: str) -> str:
    python = f"```python\n{code}\n```"
    parts = ["## How to load it", why, f"```sh\n{install}\n```", python]
    return "\n\n".join(part for part in parts if part)


# What to install


def install_ours() -> str:
    """The command that installs the code that writes this card."""
    source, origin = source_of(_direct_url(), os.environ.get("SPACE_ID", ""))
    return f"pip install {source}  # qlora_space {__version__} from {origin}"


def source_of(direct_url: str | None, space_id: str) -> tuple[str, str]:
    """The argument for `pip install`, and where it comes from in words.

    - Installed by pip from a git repository: that repository, at that commit. `direct_url` is the text of the
      distribution's direct_url.json (PEP 610).
    - On a Space, which is a git repository with this pyproject.toml: the Space, at its newest commit, because a Space
      does not know its own.
    - Otherwise a folder, as it is not known where others get the source.
    """
    if repository := _repository_of(direct_url):
        return f'"qlora-space @ {repository}"', "its repository"
    if "/" in space_id and is_repo_id(space_id):
        address = f"git+https://huggingface.co/spaces/{space_id}"
        return (
            f'"qlora-space @ {address}"',
            "the Space that trained the adapter; a private one needs a login",
        )
    return _SOURCE_FOLDER, "the folder with its source code"


def _repository_of(direct_url: str | None) -> str:
    """'' unless it is a git repository whose address can be shown to everybody."""
    try:
        content = json.loads(direct_url or "")
        address, commit = content["url"], content["vcs_info"]["commit_id"]
    except (ValueError, KeyError, TypeError):
        return ""
    is_git = content["vcs_info"].get("vcs") == "git" and not content.get("subdirectory")
    is_public = _PUBLIC_ADDRESS.fullmatch(address) and _COMMIT.fullmatch(commit)
    return f"git+{address}@{commit}" if is_git and is_public else ""


def _direct_url() -> str | None:
    try:
        return distribution("qlora-space").read_text("direct_url.json")
    except PackageNotFoundError:  # not installed but run from its folder, as on a Space
        return None


def _install_plain(plan: Plan, bits: int) -> str:
    if plan.base.source == DEMO:
        return install_ours()  # brings peft and bitsandbytes too
    if more := _READERS.get(plan.base.quantization or plan.base.read_as.partition(",")[0]):
        return f"pip install peft {more}"
    return "pip install peft bitsandbytes" if bits < 16 else "pip install peft"


# How to load


def _load_plain(plan: Plan, repo: str, bits: int) -> list[str]:
    """By transformers and peft alone."""
    is_demo, is_mxfp4 = plan.base.source == DEMO, plan.base.expert_bits > 0
    quantizes = bits < 16
    base = "BASE_FOLDER" if is_demo else _base(plan)
    precision = "quantization_config=quantization" if quantizes else 'dtype="bfloat16"'
    # Others than eager would leave the cap of its attention out, or refuse.
    attention = ', attn_implementation="eager"' if plan.base.eager_attention else ""
    more = (", Mxfp4Config" if is_mxfp4 else ", BitsAndBytesConfig") if quantizes else ""
    quantization = quantization_code(plan, bits)
    auto = auto_class(plan)
    return [
        "from peft import PeftModel",
        *(["from qlora_space.core.demo import BASE_FOLDER"] if is_demo else []),
        f"from transformers import {auto}, AutoTokenizer{more}",
        "",
        *([quantization] if quantizes else []),
        f"base = {auto}.from_pretrained({base}, {precision}{attention})",
        _load_adapter(repo),
        _load_tokenizer(repo),
    ]


def quantization_code(plan: Plan, bits: int) -> str:
    """A line that makes `quantization`; of a base whose experts are packed in the checkpoint at any width, else below
    16 bits, '' otherwise."""
    if plan.base.expert_bits:
        return _MXFP4
    return {8: _INT8, 4: _NF4}.get(bits, "")


def auto_class(plan: Plan) -> str:
    """The names of the adapter's weights are those of the whole class."""
    return "AutoModelForImageTextToText" if plan.base.is_wrapper else "AutoModelForCausalLM"


def _load_quantized(plan: Plan, repo: str) -> list[str]:
    """The base is packed again from its 16-bit weights."""
    grid = f"bits={plan.bits}, group_size={plan.group_size}"
    return [
        "from peft import PeftModel",
        *([_SHOW] if plan.expert_r else []),
        "from qlora_space.lowbit import load_quantized",
        "from transformers import AutoTokenizer",
        "",
        f"base = load_quantized({_base(plan)}, {grid})",
        *_load_onto_packed(plan, repo),
    ]


def _load_packed(plan: Plan, repo: str) -> list[str]:
    """The packed base lies beside the adapter."""
    return [
        "from peft import PeftModel",
        *([_SHOW] if plan.expert_r else []),
        "from qlora_space.lowbit import load_packed",
        "from transformers import AutoTokenizer",
        "",
        f'base = load_packed("{repo}")',
        *_load_onto_packed(plan, repo),
    ]


def _load_onto_packed(plan: Plan, repo: str) -> list[str]:
    """peft finds the parameters of packed experts only while they are shown."""
    if not plan.expert_r:
        return [_load_adapter(repo), _load_tokenizer(repo)]
    return ["with visible_experts(base):", f"    {_load_adapter(repo)}", _load_tokenizer(repo)]


def _load_adapter(repo: str) -> str:
    return f'model = PeftModel.from_pretrained(base, "{repo}")'


def _load_tokenizer(repo: str) -> str:
    return f'tokenizer = AutoTokenizer.from_pretrained("{repo}")'


def _base(plan: Plan) -> str:
    """The base as an argument, pinned to the commit where there is one."""
    match plan.base.source:
        case "demo":
            return f'"{DEMO}"'
        case "local":
            return '"path/to/the/base"'
        case "hub":
            is_pinned = _COMMIT.fullmatch(plan.base.sha)
            return f'"{plan.base.id}"' + (f', revision="{plan.base.sha}"' if is_pinned else "")


def _why_pack_again(plan: Plan) -> str:
    return (
        f"The adapter also repairs what {plan.mean_width:g} bits cost the base, so it works only on the base packed "
        "in the same way, which qlora_space does. On the 16-bit base it would repair what is not broken."
    )


def _why_packed_base(plan: Plan) -> str:
    size = bits_per_weight(plan.mean_bits or plan.bits, plan.group_size, is_packed=True)
    return (
        f"The base that it was trained on is in `base/`, packed to about {size:.2f} bits a weight; qlora_space loads "
        "it. The adapter belongs to that base and also repairs what the bits cost; on the 16-bit base it would repair "
        "what is not broken. The licence of the base applies to the packed base too."
    )

"""A prompt to base and adapted model at once, and the replies that stream back."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from qlora_space.core.facts import ModelFacts
from qlora_space.core.options import Bits, Format

Pane = Literal["base", "adapted"]


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Sampling(_Value):
    """How the next token is chosen. Temperature 0 is greedy: the same answer each time."""

    max_new_tokens: int = Field(default=256, ge=1, le=8192, description="Longest answer in tokens.")
    temperature: float = Field(
        default=0.0, ge=0, le=2, description="0: always the likeliest word. 1: varied."
    )
    top_p: float = Field(
        default=1.0, gt=0, le=1, description="Choose among the likeliest words up to this share."
    )
    seed: int = Field(default=0, ge=0, description="Same seed, same answer; both panes use it.")


class BaseRecipe(_Value):
    """How the base of a published adapter is loaded; stands in its record as `base`."""

    bits: Bits = 4
    group_size: Literal[128, 64, 32] = 64
    is_packed: bool = Field(default=False, description="By lowbit, not by bitsandbytes.")
    comes_along: bool = Field(default=False, description="Packed, in base/ of the repository.")


class CompareRequest(_Value):
    """One prompt for both panes, with the same rendering, sampling and quantized base."""

    base: ModelFacts
    bits: Bits
    adapter_folder: str = Field(description="Folder on this machine, made by us, never user text.")
    packed_folder: str = Field(
        default="", description="Where a low-bit base is packed, made by us; '' for bitsandbytes."
    )
    group_size: int = 64
    cpu_offload: bool = Field(default=False, description="The 4-bit base stays in host memory.")
    prompt: str
    system: str = ""
    format: Format = Field(description="Rendered as in training; 'text': go on from the prompt.")
    stop_token_ids: tuple[int, ...] = Field(default=(), description="Ends of the trained answers.")
    sampling: Sampling = Sampling()


class Loading(_Value):
    """Progress before the first token."""

    kind: Literal["loading"] = "loading"
    text: str


class Chunk(_Value):
    kind: Literal["chunk"] = "chunk"
    pane: Pane
    text: str


class Done(_Value):
    """Both whole answers. `same_base`: the logits of the first step in the base pane's batch row and those of a forward
    pass with the adapter off have the same sha256, so both panes share one base."""

    kind: Literal["done"] = "done"
    base: str
    adapted: str
    base_fingerprint: str
    same_base: bool
    prompt_tokens: int
    tokens_per_second: float
    seconds: float


Reply = Annotated[Loading | Chunk | Done, Field(discriminator="kind")]
reply_adapter: TypeAdapter[Reply] = TypeAdapter(Reply)

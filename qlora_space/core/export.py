"""What a run is exported to, and what was found of the export."""

from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from qlora_space.core.wording import counted, percent, significant

RecipeFormat = Literal["trl", "axolotl", "llama-factory"]
ModelFormat = Literal["merged", "merged-nf4", "merged-gptq", "gguf", "gguf-adapter"]
ExportFormat = ModelFormat | RecipeFormat
RECIPES: tuple[RecipeFormat, ...] = get_args(RecipeFormat)
GgufType = Literal["f16", "bf16", "q8_0"]
MergeBase = Literal["trained", "original"]
_OF_RECIPES = {
    "trl": "It repeats the run step by step: the same rows in the same order.",
    "axolotl": "The same documents with the same masks, in Axolotl's own order and packing.",
    "llama-factory": "LLaMA-Factory reads the dataset anew, by its columns and its own order.",
}
EXPORT_FILE = "export.json"  # in the folder of an export: Exported


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Agreement(_Value):
    """A model beside the adapter on the base that it was trained on: over the same tokens of held-out answers.

    A model that is not sound has no finite figures; they are None.
    """

    tokens: int = Field(description="Tokens of answers that were compared.")
    top1: float = Field(description="Share of them where both find the same token likeliest.")
    kl: float | None = Field(description="Nats a token from the adapter's distribution to this.")
    largest_logit_difference: float | None
    loss: float | None = Field(description="Nats a token of the expected answers.")
    adapter_loss: float | None = Field(description="The same of the adapter on its base.")

    @property
    def is_finite(self) -> bool:
        return None not in (self.kl, self.largest_logit_difference, self.loss)

    def in_words(self) -> str:
        """One sentence of figures."""
        if self.kl is None or self.loss is None or self.largest_logit_difference is None:
            return f"Its logits at {counted(self.tokens, 'token')} are no finite numbers."
        return (
            f"Beside the adapter on its base, at {counted(self.tokens, 'token')} of held-out answers: "
            f"{percent(self.top1)} have the same likeliest token, KL {significant(self.kl, 2)} nats a token, "
            f"largest difference of a logit {significant(self.largest_logit_difference, 2)}; loss "
            f"{significant(self.loss)}, the adapter's {significant(self.adapter_loss or 0.0)}."
        )


class ExportOptions(_Value):
    """Fields are the command line's flags."""

    format: ExportFormat = Field(
        default="merged",
        description="merged: base and adapter as one 16-bit model that transformers and vLLM load; merged-nf4: the "
        "same, packed to 4 bits as transformers loads it; merged-gptq: the same, calibrated and packed in GPTQ's "
        "format, which transformers loads with gptqmodel and optimum; gguf: the same for llama.cpp and Ollama; "
        "gguf-adapter: the adapter alone for llama.cpp, on a 16-bit GGUF of the base; trl, axolotl, llama-factory: the "
        "run as a script or configuration of these.",
    )
    gguf_type: GgufType = Field(
        default="q8_0", description="Numbers in the GGUF of a merged model: f16, bf16, or 8 bits."
    )
    gptq_bits: int = Field(
        default=4, ge=2, le=4, description="Bits a weight of a merged-gptq: 4, 3 or 2."
    )
    onto: MergeBase | None = Field(
        default=None,
        description="The base that the adapter is merged into: trained, with the rounding of its bits, as in training; "
        "or the original 16-bit one. Default: trained; for merged-nf4 original, because packing a base again that was "
        "packed before rounds the adapter away.",
    )
    measure: bool = Field(
        default=True,
        description="Compare the answers of the export with those of the adapter on its base.",
    )

    @property
    def merges_into_original(self) -> bool:
        by_format = self.format in ("merged-nf4", "gguf-adapter")
        return self.onto == "original" if self.onto else by_format

    @property
    def is_gguf(self) -> bool:
        return self.format in ("gguf", "gguf-adapter")


class LlamaCppCheck(_Value):
    """What llama.cpp answers to held-out prompts, greedily and by the template in the file, beside the adapter on its
    base."""

    prompts: int
    same_prompts: int = Field(description="Which it made as many tokens of as training has.")
    same_answers: int = Field(description="That are the same text, as far as both were written.")
    ended: int = Field(description="Answers that ended by themselves, of llama.cpp.")
    adapter_ended: int

    def in_words(self) -> str:
        """One sentence of counts."""
        return (
            f"llama.cpp: {self.same_prompts} of {counted(self.prompts, 'prompt')} have as many tokens as in training, "
            f"{self.same_answers} of the answers are the adapter's, and {self.ended} ended by themselves (the "
            f"adapter's: {self.adapter_ended})."
        )


class Exporting(_Value):
    """Progress."""

    kind: Literal["exporting"] = "exporting"
    text: str
    done: int = 0
    total: int = 0


class Exported(_Value):
    """An export that is there, whole; stands in its folder as export.json."""

    kind: Literal["exported"] = "exported"
    options: ExportOptions
    dtype: str = Field(description="Of what is not packed: 'bfloat16'.")
    num_bytes: int
    files: tuple[str, ...]
    agreement: Agreement | None = Field(default=None, description="None: not measured.")
    why_not_measured: str = ""
    llama_cpp: LlamaCppCheck | None = Field(
        default=None, description="Of a GGUF; None: not asked, xllamacpp is not installed."
    )
    time: float = Field(default=0.0, description="Unix time in seconds.")

    def in_words(self) -> str:
        """How far it is from the adapter, or why that is not known."""
        if self.options.format in _OF_RECIPES:
            return _OF_RECIPES[self.options.format]
        found = self.agreement.in_words() if self.agreement else ""
        if self.llama_cpp is not None:
            found = f"{found} {self.llama_cpp.in_words()}".strip()
        return found or f"Not compared with the adapter on its base: {self.why_not_measured}."


ExportReply = Annotated[Exporting | Exported, Field(discriminator="kind")]
export_reply_adapter: TypeAdapter[ExportReply] = TypeAdapter(ExportReply)

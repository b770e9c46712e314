"""Facts about a base model, a dataset and this machine, as plain values."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from qlora_space.core.options import Score


class _Facts(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LinearFacts(_Facts):
    """The linear layers of one name, of all decoder layers together."""

    name: str = Field(description="Behind the layer's number: 'self_attn.q_proj'.")
    sides: int = Field(description="Inputs and outputs: weights of an adapter of rank 1.")


class ModelFacts(_Facts):
    """A causal LM as config.json and the safetensors headers describe it; no weight is loaded."""

    id: str = Field(description="Hub id, folder, or 'demo'.")
    source: Literal["demo", "local", "hub"]
    sha: str = Field(
        description="Commit on the Hub; a hash of config, sizes and sampled weights for a folder."
    )
    architecture: str = Field(description="e.g. Qwen3ForCausalLM")
    model_type: str = Field(description="Of the text model, where that is inside of another one.")
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    tie_word_embeddings: bool
    eager_attention: bool = Field(
        default=False, description="Caps its logits (Gemma 2): torch has no fused kernel for that."
    )
    state_carried: str = Field(
        default="", description="Kind of its layers that carry state beside attention: 'Mamba'."
    )
    is_blockwise: bool = Field(
        default=True,
        description="Its blocks take hidden states alone: it can be packed one by one.",
    )
    max_position_embeddings: int
    parameters: int = Field(description="All weights of the text model.")
    linear_parameters: int = Field(description="Weights of the linear layers that get quantized.")
    linear_sides: int = Field(
        default=0,
        description="Their inputs and outputs: weights of an adapter of rank 1; 0: unknown.",
    )
    linears: tuple[LinearFacts, ...] = Field(
        default=(), description="What `linear_sides` adds up, by name; (): unknown."
    )
    left_out_parameters: int = Field(
        default=0,
        description="Weights of the checkpoint that text does not need, and that stay out.",
    )
    num_experts: int = Field(default=0, description="Of a layer; 0: not a mixture.")
    experts_per_token: int = 0
    expert_intermediate_size: int = Field(default=0, description="Width of one expert.")
    expert_parameters: int = Field(
        default=0, description="Weights of all experts, which `linear_parameters` includes."
    )
    expert_sides: int = Field(
        default=0,
        description="Weights of an adapter of rank 1 on all experts; `linear_sides` excludes it.",
    )
    expert_bits: float = Field(
        default=0.0,
        description="Of experts that the checkpoint has packed and that stay so (MXFP4).",
    )
    file_bytes: int = Field(description="Bytes of the safetensors files.")
    quantization: str = Field(
        default="", description="quant_method if the checkpoint is quantized already."
    )
    quantized_bits: int = Field(default=0, description="Bits per weight of such a checkpoint.")
    read_as: str = Field(
        default="", description="Stored so, in words, and dequantized as it is read: 'FP8'."
    )
    license: str = ""
    gated: bool = False
    has_chat_template: bool = True

    @property
    def active_parameters(self) -> int:
        """Quantized weights that one token is multiplied with."""
        share = self.experts_per_token / self.num_experts if self.num_experts else 0.0
        return self.linear_parameters - round(self.expert_parameters * (1 - share))

    @property
    def weights_per_token(self) -> int:
        """All that one token needs, embeddings included."""
        return self.parameters - self.linear_parameters + self.active_parameters

    @property
    def is_wrapper(self) -> bool:
        """Whether the text model is inside of one that also sees or hears."""
        return self.architecture.endswith("ForConditionalGeneration")


class TokenLengths(_Facts):
    """Lengths of whole examples in tokens, over the inspected rows."""

    p50: int
    p95: int
    max: int
    mean: float
    truncated_fraction: float = Field(description="Share of rows longer than max_length.")
    trained_fraction: float = Field(description="Share of tokens that get a loss.")
    histogram: tuple[int, ...] = Field(
        default=(), description="Row counts in equal bins from 0 to max."
    )


class RowCounts(_Facts):
    """What the rows become with the options of a request: what is trained on in an epoch, and what is held out."""

    is_exact: bool = Field(
        description="All rows were counted, as the run does; else scaled up from the inspected ones."
    )
    max_length: int = Field(description="What examples were cut to.")
    rows: int = Field(description="Trained on.")
    tokens: int = Field(description="Of these rows, without padding.")
    packed_rows: int
    longest_row: int = Field(default=0, description="Tokens of the longest packed row; 0: unknown.")
    row_deviation: float = Field(
        default=0.0, description="Standard deviation of the tokens of packed rows."
    )
    eval_fraction: float = Field(description="The requested one or the default; 0 with a split.")
    most_held_out: int = Field(description="Rows, or pieces of few texts.")
    held_out_rows: int = Field(description="As many as are left of these.")
    held_out_documents: int = Field(
        description="More than rows where plain text is split into several."
    )


class AnswerFacts(_Facts):
    """Expected answers of the inspected rows: how they are scored, and how long they are in tokens."""

    score: Score
    why: str = Field(description="Such as '187 of 200 answers come to a number'.")
    p50: int
    p95: int
    max: int


class DatasetFacts(_Facts):
    """A dataset as inspection found it; `num_rows` is an estimate where `is_exact` is False."""

    id: str = Field(description="Hub id, file name, or 'demo'.")
    sha: str = Field(description="Commit on the Hub; a hash of the content for a file.")
    config: str = ""
    split: str = "train"
    format: str
    num_rows: int
    is_exact: bool
    num_bytes: int = Field(default=0, description="Bytes on disk or to download; 0 if unknown.")
    lengths: TokenLengths
    counts: RowCounts | None = Field(default=None, description="None where nothing was counted.")
    answers: AnswerFacts | None = Field(
        default=None, description="None where rows are plain text, or were not looked at."
    )
    license: str = ""
    is_public: bool = Field(
        default=False, description="Everybody may read its rows: so others may see some."
    )


class Hardware(_Facts):
    """A device to train on. Memory is that of one GPU if there is one, else of the machine."""

    name: str = Field(description="'NVIDIA H200' or 'CPU, 2 cores'.")
    device: Literal["cpu", "cuda"]
    num_gpus: int = Field(
        default=1, description="GPUs of this kind that have about as much free memory."
    )
    memory_gib: float
    free_gib: float
    cpu_cores: int
    has_bf16: bool = Field(
        default=True, description="Has bf16 products; else fp16 is used, on a CPU fp32."
    )
    has_fp8: bool = Field(default=False, description="Matrix products of 8-bit floats.")
    compiles_kernels: bool = Field(
        default=True, description="Whether Triton finds a compiler; without, steps are plain."
    )
    disk_free_gib: float
    host_free_gib: float = Field(
        default=0.0, description="Free memory of the machine beside the GPU."
    )
    price_per_hour_usd: float = Field(default=0.0, description="Of the machine with all its GPUs.")

"""The request for one run. The form, the command line, the API and the README table are made from these fields.

None means "choose for me": `plan.resolve` picks a value and gives its reason. A request holds no secret.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, model_validator

from qlora_space.core.options import DEMO, Bits, Format, Init, Optim, Preset, Score, parse_int
from qlora_space.core.options import described as _field
from qlora_space.core.parsing import parse_columns, parse_values
from qlora_space.core.targets import ALL_LINEAR, parse_targets


class DataOptions(BaseModel):
    """Which rows, how they are read, and which of their tokens are learned. None: "choose for me"."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    dataset: str = _field(
        DEMO,
        "data",
        "Hub dataset id, a file, a folder, or 'demo' for the embedded one.",
        min_length=1,
        max_length=500,
    )
    dataset_config: str | None = _field(
        None, "data", "Configuration (subset) of a Hub dataset. Default: its first."
    )
    dataset_split: str | None = _field(
        None, "data", "Split to train on. Default: 'train', else the first."
    )
    dataset_revision: str | None = _field(
        None, "data", "Commit or branch of a Hub dataset. Default: main, pinned to today's commit."
    )
    format: Format | None = _field(
        None, "data", "How rows become training text. Default: detected from the columns."
    )
    columns: Annotated[dict[str, str], BeforeValidator(parse_columns)] | None = _field(
        None,
        "data",
        "Which column plays which part, as field=column,field=column "
        "(for example prompt=question,completion=answer); reasoning= leaves that part out. Default: detected.",
    )
    instruction: str | None = _field(
        None,
        "data",
        "Text before each prompt that says what to do with it; 'none' for none. Default: suggested for labels "
        "and translations.",
        max_length=4000,
    )
    eval_split: str | None = _field(
        None,
        "data",
        "Split held out for evaluation. Default: 'validation' or 'test' where there is one.",
    )
    eval_fraction: float | None = _field(
        None,
        "data",
        "Share of the training rows held out, in place of an evaluation split. 0 turns evaluation off. "
        "Default: up to 0.1 where there is no such split.",
        ge=0,
        le=0.5,
    )
    max_rows: int | None = _field(
        None,
        "data",
        "Train on the first N rows only. Fewer rows are quicker; use it for a first look.",
        ge=1,
    )
    max_length: int | None = _field(
        None,
        "data",
        "Longest example in tokens; longer ones lose their end. Memory grows with it.",
        ge=16,
        le=1_048_576,
    )
    text_overlap_tokens: int = _field(
        0,
        "data",
        "Tokens that each piece of a long text repeats from the piece before it, as context that is not learned twice. "
        "At most half of max_length.",
        ge=0,
        le=524_288,
    )
    drop_truncated: bool = _field(
        False,
        "data",
        "Leaves out examples whose answer would lose its end. Off: they teach an answer without its end.",
    )
    deduplicate: bool = _field(
        False, "data", "Trains on each row once: exact repeats of an earlier row are left out."
    )
    packing: bool = _field(
        True,
        "data",
        "Puts several short examples into one row; they never see each other. Several times faster on short data.",
    )
    assistant_only_loss: bool = _field(
        True, "data", "Learn the answers only. Off: learn to write the questions too."
    )


class TrainingRequest(DataOptions):
    """One fine-tuning run, as asked for; the options about its data come first. Names are peft's and trl's own."""

    base: str = _field(
        DEMO,
        "base",
        "Hub id or folder of a causal language model in safetensors, or 'demo' for the embedded one.",
        min_length=1,
        max_length=500,
    )
    base_revision: str | None = _field(
        None, "base", "Commit or branch of the base. Default: main, pinned to today's commit."
    )
    bits: Annotated[Bits, BeforeValidator(parse_int)] = _field(
        4,
        "base",
        "Bits per weight of the frozen base. 4 (NF4, double quantization) needs about a quarter of the memory of 16; "
        "3 and 2 need less still and cost quality, which is measured before training.",
    )
    init: Init | None = _field(
        None,
        "low_bit",
        "What the adapter starts as: zero (nothing), or the best repair of the quantization error, measured on the "
        "weights (svd), on the size of each input (diagonal), on inputs with their correlations (eora), or the better "
        "of eora and SRR (srr). Default: eora at 3 bits and below, else zero.",
    )
    heal: bool = _field(
        False,
        "low_bit",
        "Before training, teaches the adapter to answer as the 16-bit base does. Minutes, and worth most at 2 bits.",
    )
    group_size: Annotated[Literal[128, 64, 32], BeforeValidator(parse_int)] = _field(
        64,
        "low_bit",
        "Weights that share a scale at 2 and 3 bits. Smaller groups are more exact and need more memory.",
    )
    mean_bits: float | None = _field(
        None,
        "low_bit",
        "Mixed bits, such as 2.5: the layers that suffer most get 3 or 4, the others 2, and this is their average. "
        "Takes the place of bits.",
        ge=2,
        lt=4,
    )
    base_gib: float | None = _field(
        None,
        "low_bit",
        "Mixed bits, as many as a packed base of this size has room for, embeddings and head included. A 14B in 8 GiB "
        "has 3 on average. Takes the place of bits.",
        ge=0.001,
        le=1e6,
    )
    calibrated: bool | None = _field(
        None,
        "low_bit",
        "Quantizes by what each layer sees of the calibration text: much closer to the 16-bit base, for minutes of "
        "work. Nobody can pack that base again without the text, so it is published with the adapter. On at 4 bits it "
        "takes the place of NF4. Default: on at 3 bits and below.",
    )

    preset: Preset = _field(
        Preset.BALANCED,
        "training",
        "quick: see in minutes whether it learns. balanced: a good result. thorough: more passes and a higher rank.",
    )
    num_train_epochs: float | None = _field(
        None,
        "optimisation",
        "Passes over the data. More learns more and forgets more.",
        gt=0,
        le=1000,
    )
    max_steps: int | None = _field(
        None,
        "optimisation",
        "Stop after this many optimizer steps, whatever the epochs say.",
        ge=1,
        le=10_000_000,
    )
    learning_rate: float | None = _field(
        None,
        "optimisation",
        "Size of an update. Too high: the loss jumps; too low: nothing is learned.",
        gt=0,
        le=1,
    )
    per_device_train_batch_size: int | None = _field(
        None,
        "optimisation",
        "Rows that are on a GPU at once. Memory grows with it.",
        ge=1,
        le=1024,
    )
    gradient_accumulation_steps: int | None = _field(
        None,
        "optimisation",
        "Batches added up before an update. Larger updates at no memory, but fewer of them.",
        ge=1,
        le=1024,
    )
    num_processes: int | None = _field(
        None,
        "optimisation",
        "GPUs that share every update, each with as many rows at once. Where batches per update are chosen for you, "
        "more GPUs mean fewer of them for the same rows, rounded up. Default: all of one kind that make it faster.",
        ge=1,
        le=64,
    )
    lr_scheduler_type: Literal["cosine", "linear", "constant"] = _field(
        "cosine", "optimisation", "How the learning rate goes down over the run."
    )
    warmup_steps: float = _field(
        0.05,
        "optimisation",
        "Steps in which the learning rate rises from 0; below 1 it is a share of all steps.",
        ge=0,
    )
    weight_decay: float = _field(
        0.0, "optimisation", "Pulls adapter weights towards 0.", ge=0, le=1
    )
    max_grad_norm: float | None = _field(
        None,
        "optimisation",
        "Updates larger than this are scaled down, so one bad batch does no harm. Default: 1, at 3 bits and below 0.3.",
        gt=0,
    )
    optim: Optim | None = _field(
        None,
        "optimisation",
        "Optimizer. paged_adamw_8bit saves memory on large bases and moves its state to the machine's "
        "memory when the GPU is full.",
    )
    gradient_checkpointing: bool | None = _field(
        None,
        "optimisation",
        "Computes activations twice instead of keeping them: much less memory, about 30 % slower.",
    )
    fp8: bool = _field(
        False,
        "optimisation",
        "Multiplies the frozen base in 8-bit floats on GPUs that can (Ada and later): a third faster, not exact. "
        "Not done where it changes the loss of the first rows by more than 0.5 %.",
    )
    seed: int = _field(42, "optimisation", "Same seed and data: same run.", ge=0, le=2**31 - 1)

    adapter: str | None = _field(
        None,
        "lora",
        "Go on from this LoRA adapter instead of a new one: the id of a run of yours, a Hub id, or a folder. Rank, "
        "scale and layers are then its own; the base must be the one it was trained on.",
        max_length=500,
    )
    r: int | None = _field(
        None,
        "lora",
        "Rank of the adapter. A higher rank learns more and needs more memory.",
        ge=1,
        le=1024,
    )
    expert_r: int | None = _field(
        None,
        "lora",
        "Rank of the adapter on every expert of a mixture; 0 leaves the experts as they are. Default: r, shared by the "
        "experts of a token.",
        ge=0,
        le=64,
    )
    lora_alpha: int | None = _field(
        None,
        "lora",
        "Strength of the adapter: its output is scaled by lora_alpha / r. Default: equal to r.",
        ge=1,
        le=4096,
    )
    target_modules: Annotated[str, BeforeValidator(parse_targets)] = _field(
        ALL_LINEAR,
        "lora",
        "Layers that are adapted: all-linear, attention, mlp, or names such as q_proj,v_proj. All of them learn best "
        "for the same number of weights; fewer save memory but take the plain step.",
        max_length=500,
    )
    use_rslora: bool = _field(
        False,
        "lora",
        "Scales by lora_alpha / sqrt(r), so that a high rank is not held back. Worth trying at r of 64 and more, at a "
        "lower learning rate.",
    )
    use_dora: bool = _field(
        False,
        "lora",
        "Learns the size of each output apart from its direction (DoRA). About the same quality at the best learning "
        "rate, for more time and memory: it takes the plain step and builds every adapted weight in each pass. vLLM "
        "does not load it.",
    )
    lora_dropout: float = _field(
        0.0,
        "lora",
        "Share of adapter inputs dropped in training. Helps a little on small data, costs speed.",
        ge=0,
        lt=1,
    )

    eval_steps: int | None = _field(
        None, "evaluation", "Optimizer steps between evaluations on the held-out rows.", ge=1
    )
    eval_share: float = _field(
        0.15,
        "evaluation",
        "Most of a run's time that evaluation may take, as a share: evaluations during training and scored answers are "
        "as many as fit. Ten seconds and the held-out loss before and after are always allowed.",
        ge=0.01,
        le=0.9,
    )
    score: Score | None = _field(
        None,
        "evaluation",
        "What makes an answer right, beside being the expected text: its final number, the choice or label, JSON by "
        "field, function calls, shared words (f1), longest shared sequence (rouge_l), code that parses; exact: nothing "
        "else; none: no answers are written. Default: by the expected answers.",
    )
    forgetting: bool | None = _field(
        None,
        "evaluation",
        "Asks sixty short general questions before and after (knowledge, instructions, arithmetic), to see what was "
        "forgotten. Default: where they fit into eval_share; not for the embedded base.",
    )
    num_samples: int = _field(
        4,
        "evaluation",
        "Held-out prompts answered at every evaluation, so that one sees it learn.",
        ge=0,
        le=16,
    )
    save_steps: int | None = _field(
        None,
        "checkpoints",
        "Optimizer steps between checkpoints. Default: by time only.",
        ge=1,
    )
    save_seconds: float = _field(
        120.0,
        "checkpoints",
        "Seconds between checkpoints; at least a hundred times what one takes. A run that is cut off loses that much.",
        gt=0,
    )
    mirror_to: str | None = _field(
        None,
        "checkpoints",
        "Keep a copy of the run, minutes old, in this private Hub repository (owner/name): another machine can go on.",
        max_length=120,
    )
    load_best_model_at_end: bool = _field(
        True,
        "evaluation",
        "The adapter becomes the checkpoint with the lowest held-out loss. Off: the last one.",
    )
    early_stopping_patience: int = _field(
        0,
        "evaluation",
        "Stop after this many evaluations without a better held-out loss. 0: never.",
        ge=0,
        le=1000,
    )
    name: str | None = _field(
        None,
        "checkpoints",
        "A name for the run in the list. Default: made from dataset and base.",
        max_length=80,
    )
    hub_model_id: str | None = _field(
        None,
        "publishing",
        "Publish the adapter to this Hub repository (owner/name) when the run is done. Checked before training.",
        max_length=120,
    )
    hub_private_repo: bool = _field(
        True,
        "publishing",
        "Create that repository private. You can make it public on the Hub later.",
    )

    place: Literal["here", "job"] = _field(
        "here",
        "place",
        "Where it runs. here: on this machine. job: on a machine of HF Jobs, paid by the minute from your account's "
        "credit; the run comes back through a private repository of yours.",
    )
    flavor: str | None = _field(
        None,
        "place",
        "Machine of a job, as the Hub names it (l4x1, a100-large). Default: the cheapest that it fits on.",
        max_length=40,
    )
    max_usd: float | None = _field(
        None,
        "place",
        "Most dollars that a job may cost: it saves and stops before that. Default: twice the time that is planned, "
        "and half an hour.",
        gt=0,
        le=100_000,
    )

    @model_validator(mode="before")
    @classmethod
    def _renamed(cls, values: Any) -> Any:
        """Older request.json files and programs say "gptq", which was off if nothing was said."""
        if not isinstance(values, dict) or "gptq" not in values:
            return values
        kept = {name: value for name, value in values.items() if name != "gptq"}
        is_on = str(values["gptq"]).lower() in ("true", "on", "1")
        return {"calibrated": True} | kept if is_on else kept


def seen_by_inspection(request: TrainingRequest) -> dict[str, Any]:
    """The fields that inspection depends on: those about the data, the seed, and the base, for its tokenizer."""
    names = {*DataOptions.model_fields, "base", "base_revision", "num_train_epochs", "seed"}
    return request.model_dump(mode="json", include=names)


def parse_request(values: dict[str, Any]) -> TrainingRequest:
    """As parse_values; None and '' mean "choose for me". Raises RequestError."""
    return parse_values(TrainingRequest, {k: v for k, v in values.items() if v not in (None, "")})

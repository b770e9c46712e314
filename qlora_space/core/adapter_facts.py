"""What the files of an adapter say, before any of it is loaded."""

from pydantic import BaseModel, ConfigDict, Field

from qlora_space.core.comparison import BaseRecipe


class AdapterFacts(BaseModel):
    """A LoRA adapter as its adapter_config.json, its record and the header of its weights have it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    base: str = Field(description="Hub id, or the name of a folder, of the base it was trained on.")
    base_revision: str = Field(default="", description="'': not stated.")
    recipe: BaseRecipe = BaseRecipe()
    r: int = Field(default=0, description="0: not stated.")
    expert_r: int = Field(default=0, description="Rank on each expert.")
    lora_alpha: int = 0
    use_rslora: bool = False
    linears: tuple[str, ...] = Field(
        default=(), description="Names of the adapted linears, as core/targets.py has them."
    )
    special: str = Field(
        default="",
        description="What training cannot go on from: 'is of the kind VERA'; '': nothing.",
    )

"""What was found when a published adapter was downloaded and loaded as anybody would load it."""

from pydantic import BaseModel, ConfigDict, Field

from qlora_space.core.export import Agreement
from qlora_space.core.wording import percent, significant

LEAST_TOP1 = 0.98
LARGEST_KL = 1e-3  # nats a token: more than sums in another order make


class Proof(BaseModel):
    """A fresh process downloads one commit into an empty cache and loads it by the code of its card.

    `problems`: sentences, empty where everything is as trained.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    repo: str
    commit: str
    time: float = Field(description="Unix time in seconds.")
    agreement: Agreement | None = Field(description="None: it could not be loaded.")
    prompts: int = Field(description="Held-out prompts that its template rendered.")
    same_prompts: int = Field(description="Those with the tokens of training.")
    problems: tuple[str, ...] = ()
    for_16_bit: bool = Field(default=False, description="How it was published, as these three say.")
    with_base: bool = False
    step: int | None = Field(default=None, description="Of a kept checkpoint.")

    @property
    def is_proved(self) -> bool:
        return not self.problems

    def in_words(self) -> str:
        """One sentence."""
        if self.problems:
            return "What was published is not what was trained: " + " ".join(self.problems)
        found = self.agreement
        assert found is not None
        return (
            f"Downloaded again and loaded by the code of its card, it finds the same next token at "
            f"{percent(found.top1)} of {found.tokens:,} tokens of held-out answers (largest difference of a logit "
            f"{significant(found.largest_logit_difference or 0.0, 2)}), and its template and ends of answers are those "
            "of training."
        )


def problems_of(found: Agreement) -> list[str]:
    """Sentences about logits that are not the adapter's."""
    if not found.is_finite:
        return [f"Its logits at {found.tokens:,} tokens are no finite numbers."]
    if found.top1 < LEAST_TOP1 or (found.kl or 0.0) > LARGEST_KL:
        return [
            f"It finds the same next token at only {percent(found.top1)} of {found.tokens:,} tokens (KL "
            f"{significant(found.kl or 0.0, 2)} nats a token; at most {LARGEST_KL} is rounding): weights or base are "
            "others."
        ]
    return []

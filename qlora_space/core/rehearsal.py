"""What publishing the adapter of a new run would meet, asked before anything is trained."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Rehearsal(BaseModel):
    """new: the repository will be made, which this token may. empty: it is there, holds nothing, and this token may
    write to it. refused: publishing would fail."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    repo: str = Field(description="With its owner, where that is known.")
    state: Literal["new", "empty", "refused"]
    is_private: bool
    problem: str = Field(default="", description="What would be refused, in a sentence.")
    fix: str = ""

    @property
    def in_words(self) -> str:
        """'ada/tea: new repository, private'."""
        if self.state == "refused":
            return f"not to {self.repo}: {self.problem}"
        kind = "new repository" if self.state == "new" else "your empty repository"
        return f"{self.repo}: {kind}, {'private' if self.is_private else 'public'}"

"""How few bits did on bases that were measured. Written by docs/write_measured_bits.py from docs/figures."""

from dataclasses import dataclass


@dataclass(frozen=True)
class MeasuredWidth:
    """A way to few bits, with the adapter init that the plan chooses for it (rank 32, groups of 64), on held-out text.

    top1: share of the 16-bit base's next words. kl: nats a token to it.
    """

    bits: int
    calibrated: bool
    top1: float
    kl: float


@dataclass(frozen=True)
class MeasuredBase:
    """model_type: that of its family. parameters: all its weights."""

    name: str
    model_type: str
    parameters: int
    widths: tuple[MeasuredWidth, ...]


MEASURED_BASES = (
    MeasuredBase(
        "SmolLM2-135M-Instruct",
        "llama",
        134_515_008,
        (
            MeasuredWidth(4, False, 0.7186, 0.285),
            MeasuredWidth(4, True, 0.8548, 0.069),
            MeasuredWidth(3, True, 0.7477, 0.242),
            MeasuredWidth(2, True, 0.4927, 1.162),
        ),
    ),
    MeasuredBase(
        "Gemma 3 270M",
        "gemma3_text",
        268_098_176,
        (
            MeasuredWidth(4, False, 0.7395, 0.239),
            MeasuredWidth(4, True, 0.8381, 0.088),
            MeasuredWidth(3, True, 0.7365, 0.250),
            MeasuredWidth(2, True, 0.4821, 1.154),
        ),
    ),
)

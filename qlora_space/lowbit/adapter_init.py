"""Adapter inits: quantize a weight W to Q, and find the B A of rank r that repairs W - Q best.

One closed form: with covariance C = R^T R of the inputs, E ||(D - B A) x||^2 = ||(D - B A) R^T||_F^2, so the
truncated SVD U S V^T of D R^T gives B = U S^(1/2), A = S^(1/2) V^T R^-T. The inits differ in R:

    zero      B = 0, as in LoRA (arXiv 2106.09685)
    svd       R = I: the first step of LoftQ (2310.08659)
    diagonal  R diagonal: QERA-approx (2410.06040)
    eora      any full R: EoRA (2410.21271), QERA-exact, CLoQ (2501.18475); here the Cholesky factor
    srr       eora, with a part of the rank spent on the weight itself before it is quantized (2602.02001)
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from qlora_space.lowbit.grid import Quantized

Init = Literal["zero", "svd", "diagonal", "eora", "srr"]
AdapterInits = dict[str, tuple[torch.Tensor, torch.Tensor]]  # linear's name -> A (r, n), B (m, r)
Quantize = Callable[[torch.Tensor], Quantized]
QuantizeAgain = Callable[[torch.Tensor, Quantized], Quantized]
DAMPING = 0.01  # share of the mean diagonal; GPTQ's
_OVERSAMPLE, _POWER_STEPS = 16, 4


@dataclass(frozen=True)
class AdapterInit:
    """One linear before the first step: W is about Q + B A.

    a: (r, n) fp32. b: (m, r) fp32. Errors are mean squared output errors as a share of the output's mean square, of Q
    and of Q + B A.
    """

    quantized: Quantized
    a: torch.Tensor
    b: torch.Tensor
    error_quantized: float
    error_repaired: float


def damped(covariance: torch.Tensor) -> torch.Tensor:
    """A copy of the covariance (n, n) in fp64, DAMPING of its mean diagonal added: it has a Cholesky factor."""
    c = covariance.to(torch.float64, copy=True)
    c.diagonal().add_(DAMPING * c.diagonal().mean().clamp_min(1e-12))
    return c


def covariance_root(covariance: torch.Tensor) -> torch.Tensor:
    """R^T: the lower Cholesky factor (n, n) fp32 of the damped covariance (n, n), factored in fp64."""
    return torch.linalg.cholesky(damped(covariance)).float()


def solve_adapter_init(
    weight: torch.Tensor,
    root: torch.Tensor,
    quantize: Quantize,
    init: Init,
    r: int,
    *,
    again: QuantizeAgain | None = None,
) -> AdapterInit:
    """Quantize a weight (m, n) and solve for its adapter; `root` is covariance_root of its inputs.

    again: quantizes what B A leaves of the weight, given Q; then B A is solved for once more, and the better pair
    stays. The result is never worse than Q alone: B is 0 where a correction would do harm, as svd and diagonal can.
    """
    w = weight.float()
    quantized = quantize(w)
    a, b = low_rank_correction(w - quantized.dequantized(), root, init, r)
    candidates = [(quantized, a, b)]
    if again is not None:
        second = again(w - b @ a, quantized)
        candidates.append((second, *low_rank_correction(w - second.dequantized(), root, init, r)))
    if init == "srr" and (k := _split_rank(w, root, r)):
        candidates.append(_preserve_then_quantize(w, root, quantize, k, r))
    errors = [_energy(w - q.dequantized() - b @ a, root) for q, a, b in candidates]
    best = min(range(len(candidates)), key=errors.__getitem__)
    output_energy, plain = _energy(w, root), _energy(w - quantized.dequantized(), root)
    best_quantized, a, b = candidates[best]
    if errors[best] > plain:
        best_quantized, b, errors[best] = quantized, torch.zeros_like(b), plain
    return AdapterInit(best_quantized, a, b, plain / output_energy, errors[best] / output_energy)


def low_rank_correction(
    d: torch.Tensor, root: torch.Tensor, init: Init, r: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """A (r, n) and B (m, r), fp32, for the error D (m, n) fp32; `root` is R^T, the covariance_root of the inputs."""
    if init == "zero":
        return _kaiming(r, d), d.new_zeros(d.shape[0], r)
    if init == "svd":
        u, s, v = randomized_svd(d, r)
        a = v
    elif init == "diagonal":
        scale = root.square().sum(1).sqrt()
        u, s, v = randomized_svd(d * scale, r)
        a = v / scale
    else:
        u, s, v = randomized_svd(d @ root, r)
        a = torch.linalg.solve_triangular(
            root.double(), v.double(), upper=False, left=False
        ).float()
    half = s.sqrt()
    return half[:, None] * a, u * half


def randomized_svd(x: torch.Tensor, r: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """U (m, r), S (r), V^T (r, n) of (m, n) fp32 by subspace iteration (arXiv 0909.4061, algorithm 4.4).

    Deterministic: the test matrix has a fixed seed of its own.
    """
    width = min(r + _OVERSAMPLE, *x.shape)
    generator = torch.Generator().manual_seed(0)
    y = x @ torch.randn(x.shape[1], width, generator=generator).to(x.device)
    for _ in range(_POWER_STEPS):
        y = x @ torch.linalg.qr(x.T @ torch.linalg.qr(y)[0])[0]
    q = torch.linalg.qr(y)[0]
    # q^T x = small^T rows^T, so the SVD is of (width, width).
    rows, small = torch.linalg.qr(x.T @ q)
    svd = torch.linalg.svd(small.T.double().cpu())  # tens of rows: a GPU would take longer
    u, s, v = (part.float().to(x.device) for part in svd)
    return _padded_to_rank(q @ u, s, (rows @ v.T).T, r)


def _padded_to_rank(
    u: torch.Tensor, s: torch.Tensor, v: torch.Tensor, r: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Cut to rank r, or padded with zeros where the matrix has a smaller one."""
    u, s, v = u[:, :r], s[:r], v[:r]
    missing = r - len(s)
    pad = torch.nn.functional.pad
    return pad(u, (0, missing)), pad(s, (0, missing)), pad(v, (0, 0, 0, missing))


def _kaiming(r: int, like: torch.Tensor) -> torch.Tensor:
    """A (r, n) as peft draws it; with B = 0 it changes nothing but can be trained."""
    generator = torch.Generator().manual_seed(0)
    bound = like.shape[1] ** -0.5
    a = torch.empty(r, like.shape[1]).uniform_(-bound, bound, generator=generator)
    return a.to(like.device)


def _energy(d: torch.Tensor, root: torch.Tensor) -> float:
    """Mean squared output of D (m, n) for inputs of that covariance."""
    return float((d @ root).square().sum())


def _split_rank(w: torch.Tensor, root: torch.Tensor, r: int) -> int:
    """How much of the rank SRR gives to the weight itself: the k that minimizes rho_k(W S) rho_(r-k)(E S), with rho_k
    the share of energy beyond rank k and E uniform noise in place of the quantization error (arXiv 2602.02001)."""
    generator = torch.Generator(w.device).manual_seed(1)
    probe = torch.rand(w.shape, generator=generator, device=w.device) - 0.5
    tails = [_tail_energy(x @ root, r) for x in (w, probe)]
    scores = [float(tails[0][k] * tails[1][r - k]) for k in range(r + 1)]
    return min(range(r + 1), key=scores.__getitem__)


def _tail_energy(x: torch.Tensor, r: int) -> torch.Tensor:
    """(r + 1): share of the energy beyond rank 0, 1 .. r."""
    s = randomized_svd(x, r)[1]
    head = torch.cat([s.new_zeros(1), s.square().cumsum(0)])
    return 1 - head / x.square().sum()


def _preserve_then_quantize(
    w: torch.Tensor, root: torch.Tensor, quantize: Quantize, k: int, r: int
) -> tuple[Quantized, torch.Tensor, torch.Tensor]:
    """SRR: rank k for the weight, then quantize what it leaves, then rank r - k for the error."""
    a1, b1 = low_rank_correction(w, root, "eora", k)
    quantized = quantize(w - b1 @ a1)
    if k == r:
        return quantized, a1, b1
    a2, b2 = low_rank_correction(w - b1 @ a1 - quantized.dequantized(), root, "eora", r - k)
    return quantized, torch.cat([a1, a2]), torch.cat([b1, b2], 1)

"""The family of adapter starts: B A of rank r that repairs W - Q best, each in its own measure of the error.

One closed form: with covariance C = R^T R of the inputs, E ||(D - B A) x||^2 = ||(D - B A) R^T||_F^2, so the
truncated SVD U S V^T of D R^T gives B = U S^(1/2), A = S^(1/2) V^T R^-T. R = I is the first step of LoftQ
(arXiv 2310.08659), R diagonal is QERA-approx (2410.06040), any full R is EoRA (2410.21271), QERA-exact and CLoQ
(2501.18475). Ours is the Cholesky factor. SRR (2602.02001) spends a part of the rank on the weight itself, before it
is quantized.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from qlora_space.lowbit.grid import Quantized

Init = Literal["zero", "svd", "diagonal", "eora", "srr"]
Quantize = Callable[[torch.Tensor], Quantized]
DAMPING = 0.01  # share of the mean diagonal; GPTQ's
_OVERSAMPLE, _POWER_STEPS = 16, 4


@dataclass(frozen=True)
class Start:
    """One linear at step 0: W is about Q + B A. A (r, n), B (m, r), fp32. Errors are relative, in output energy."""

    quantized: Quantized
    a: torch.Tensor
    b: torch.Tensor
    error_quantized: float
    error_started: float


def damped(covariance: torch.Tensor) -> torch.Tensor:
    """A copy in fp64, with 1 % of the mean diagonal added."""
    c = covariance.to(torch.float64, copy=True)
    c.diagonal().add_(DAMPING * c.diagonal().mean().clamp_min(1e-12))
    return c


def root_of(covariance: torch.Tensor) -> torch.Tensor:
    """R^T: the lower Cholesky factor (n, n) of the damped covariance, factored in fp64, fp32."""
    return torch.linalg.cholesky(damped(covariance)).float()


def start(
    weight: torch.Tensor, root: torch.Tensor, quantize: Quantize, init: Init, r: int
) -> Start:
    """Quantize (m, n) and find the adapter that the training starts from; `root` is root_of its inputs."""
    w = weight.float()
    quantized = quantize(w)
    found = [(quantized, *correction(w - quantized.dequantized(), root, init, r))]
    if init == "srr" and (split := _split_rank(w, root, r)):
        found.append(_preserved_start(w, root, quantize, split, r))
    errors = [_energy(w - q.dequantized() - b @ a, root) for q, a, b in found]
    best = min(range(len(found)), key=errors.__getitem__)
    whole, plain = _energy(w, root), _energy(w - quantized.dequantized(), root)
    quantized_best, a, b = found[best]
    if errors[best] > plain:  # a weight-only or diagonal correction can do harm; no start may
        quantized_best, a, b, errors[best] = quantized, a, torch.zeros_like(b), plain
    return Start(quantized_best, a, b, plain / whole, errors[best] / whole)


def correction(
    d: torch.Tensor, root: torch.Tensor, init: Init, r: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """A (r, n) and B (m, r) for the error D (m, n); `root` is the lower Cholesky factor R^T of the covariance."""
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
    """U (m, r), S (r), V^T (r, n) of (m, n) fp32 by subspace iteration (arXiv 0909.4061, algorithm 4.4); same
    result every time."""
    width = min(r + _OVERSAMPLE, *x.shape)
    generator = torch.Generator().manual_seed(0)
    y = x @ torch.randn(x.shape[1], width, generator=generator).to(x.device)
    for _ in range(_POWER_STEPS):
        y = x @ torch.linalg.qr(x.T @ torch.linalg.qr(y)[0])[0]
    q = torch.linalg.qr(y)[0]
    rows, small = torch.linalg.qr(
        x.T @ q
    )  # q^T x = small^T rows^T, so the SVD is of (width, width)
    found = torch.linalg.svd(small.T.double().cpu())  # tens of rows: a GPU would take longer
    u, s, v = (part.float().to(x.device) for part in found)
    return _with_rank(q @ u, s, (rows @ v.T).T, r)


def _with_rank(
    u: torch.Tensor, s: torch.Tensor, v: torch.Tensor, r: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Cut to r; where the matrix has fewer, the rest is zero."""
    u, s, v = u[:, :r], s[:r], v[:r]
    missing = r - len(s)
    pad = torch.nn.functional.pad
    return pad(u, (0, missing)), pad(s, (0, missing)), pad(v, (0, 0, 0, missing))


def _kaiming(r: int, like: torch.Tensor) -> torch.Tensor:
    """peft's own A: with B = 0 it changes nothing, and it learns."""
    generator = torch.Generator().manual_seed(0)
    bound = like.shape[1] ** -0.5
    a = torch.empty(r, like.shape[1]).uniform_(-bound, bound, generator=generator)
    return a.to(like.device)


def _energy(d: torch.Tensor, root: torch.Tensor) -> float:
    """Mean squared output of D for inputs of that covariance."""
    return float((d @ root).square().sum())


def _split_rank(w: torch.Tensor, root: torch.Tensor, r: int) -> int:
    """How much of the rank SRR gives to the weight itself: the k of the least rho_k(W S) rho_(r-k)(E S), rho the share
    of energy after rank k, E a uniform stand-in for the quantization error."""
    generator = torch.Generator(w.device).manual_seed(1)
    probe = torch.rand(w.shape, generator=generator, device=w.device) - 0.5
    tails = [_tail_shares(x @ root, r) for x in (w, probe)]
    scores = [float(tails[0][k] * tails[1][r - k]) for k in range(r + 1)]
    return min(range(r + 1), key=scores.__getitem__)


def _tail_shares(x: torch.Tensor, r: int) -> torch.Tensor:
    """(r + 1): energy left after rank 0, 1 .. r, as a share of all."""
    s = randomized_svd(x, r)[1]
    taken = torch.cat([s.new_zeros(1), s.square().cumsum(0)])
    return 1 - taken / x.square().sum()


def _preserved_start(
    w: torch.Tensor, root: torch.Tensor, quantize: Quantize, k: int, r: int
) -> tuple[Quantized, torch.Tensor, torch.Tensor]:
    a1, b1 = correction(w, root, "eora", k)
    quantized = quantize(w - b1 @ a1)
    if k == r:
        return quantized, a1, b1
    a2, b2 = correction(w - b1 @ a1 - quantized.dequantized(), root, "eora", r - k)
    return quantized, torch.cat([a1, a2]), torch.cat([b1, b2], 1)

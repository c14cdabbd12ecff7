"""Samplers that remember: each step uses what the network said in the steps before; ``samplers`` says how to call them.

A run that is cut and goes on in another call begins its memory anew. Two networks that share the steps of one call
share its memory, too.
"""

import math

import numpy as np

from gm.diffusion.denoiser import Callback, Model, Noise, Predicts, begin, denoiser, end, sigma_of, tell
from gm.diffusion.steps import Steps


def sample_dpmpp_2m(
    model: Model,
    x: np.ndarray,
    steps: Steps,
    prediction_type: Predicts = "epsilon",
    noise: Noise | None = None,
    callback: Callback | None = None,
) -> np.ndarray:
    """DPM-Solver++(2M), midpoint form: Lu et al. 2022 (arXiv 2211.01095), Algorithm 2. The last step is first order."""
    denoise = denoiser(model, prediction_type)
    x = begin(x, steps)
    previous, previous_h = None, 0.0
    for index, (timestep, abar, next_abar) in enumerate(steps):
        sigma, next_sigma = sigma_of(abar), sigma_of(next_abar)
        denoised = denoise(x, sigma, timestep)
        if next_sigma == 0:
            x = denoised
        else:
            h = math.log(sigma / next_sigma)
            slope = 0.0 if previous is None else (denoised - previous) * (h / (2 * previous_h))
            x = (next_sigma / sigma) * x - math.expm1(-h) * (denoised + slope)
            previous, previous_h = denoised, h
        tell(callback, index, denoised)
    return end(x, steps)


def sample_unipc(
    model: Model,
    x: np.ndarray,
    steps: Steps,
    prediction_type: Predicts = "epsilon",
    noise: Noise | None = None,
    callback: Callback | None = None,
) -> np.ndarray:
    """UniPC, second order, B(h) = e^h - 1 (bh2): Zhao et al. 2023 (arXiv 2302.04867), Algorithms 5 and 6.

    Each evaluation first corrects the step that led to it, then predicts the next; the last step is first order.
    """
    denoise = denoiser(model, prediction_type)
    x = begin(x, steps)
    history: list[tuple[float, np.ndarray]] = []  # sigma and denoised of the last two evaluations
    before, order = x, 0  # where the step that led here began, and its order
    for index, (timestep, abar, next_abar) in enumerate(steps):
        sigma, next_sigma = sigma_of(abar), sigma_of(next_abar)
        denoised = denoise(x, sigma, timestep)
        if history:
            x = _unipc_correct(before, denoised, history, sigma, order)
        history = [*history[-1:], (sigma, denoised)]
        before, order = x, len(history)
        x = denoised if next_sigma == 0 else _unipc_predict(x, history, next_sigma, order)
        tell(callback, index, denoised)
    return end(x, steps)


def _unipc_predict(x: np.ndarray, history: list[tuple[float, np.ndarray]], next_sigma: float, order: int) -> np.ndarray:
    sigma, denoised = history[-1]
    h = math.log(sigma / next_sigma)
    phi = math.expm1(-h)
    x = (next_sigma / sigma) * x - phi * denoised
    if order == 2:
        previous_sigma, previous = history[-2]
        ratio = math.log(sigma / previous_sigma) / h  # negative: the earlier evaluation lies behind
        x = x - phi * 0.5 * (previous - denoised) / ratio
    return x


def _unipc_correct(
    x: np.ndarray, denoised: np.ndarray, history: list[tuple[float, np.ndarray]], sigma: float, order: int
) -> np.ndarray:
    """The step from ``x`` to ``sigma`` again, with ``denoised`` found there as one more point to go through."""
    begin, first = history[-1]
    h = math.log(begin / sigma)
    phi = math.expm1(-h)
    change = 0.5 * (denoised - first)
    if order == 2:
        previous_sigma, previous = history[-2]
        ratio = math.log(begin / previous_sigma) / h
        # the moments of the exponential integrator, whose sum over the two points must be right (eq. 11)
        moments = [(phi / -h - 1.0) / phi, 2.0 * ((phi / -h - 1.0) / -h - 0.5) / phi]
        behind, ahead = np.linalg.solve([[1.0, 1.0], [ratio, 1.0]], moments).tolist()
        change = behind * (previous - first) / ratio + ahead * (denoised - first)
    return (sigma / begin) * x - phi * (first + change)


def sample_lms(
    model: Model,
    x: np.ndarray,
    steps: Steps,
    prediction_type: Predicts = "epsilon",
    noise: Noise | None = None,
    callback: Callback | None = None,
) -> np.ndarray:
    """Linear multistep (Adams-Bashforth over sigma), fourth order once there are four slopes: k-diffusion."""
    denoise = denoiser(model, prediction_type)
    x = begin(x, steps)
    levels: list[float] = []
    slopes: list[np.ndarray] = []
    for index, (timestep, abar, next_abar) in enumerate(steps):
        sigma, next_sigma = sigma_of(abar), sigma_of(next_abar)
        denoised = denoise(x, sigma, timestep)
        levels, slopes = [sigma, *levels[:3]], [(x - denoised) / sigma, *slopes[:3]]
        for weight, slope in zip(_lagrange_integrals(levels, sigma, next_sigma), slopes):
            x = x + weight * slope
        tell(callback, index, denoised)
    return end(x, steps)


def _lagrange_integrals(nodes: list[float], start: float, end: float) -> list[float]:
    """The integral from ``start`` to ``end`` of each polynomial that is 1 at its node and 0 at the others."""
    points, weights = np.polynomial.legendre.leggauss(len(nodes))  # exact for these degrees
    points = (end - start) / 2 * points + (end + start) / 2
    integrals = []
    for own in nodes:
        basis = np.ones_like(points)
        for other in nodes:
            if other != own:
                basis *= (points - other) / (own - other)
        integrals.append(float((end - start) / 2 * (weights * basis).sum()))
    return integrals

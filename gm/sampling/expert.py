"""One UNet that draws: what it predicts, the text encoders it listens to, and guidance around it."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from gm.diffusion.guidance import classifier_free, embedded, rescale
from gm.diffusion.objective import check_prediction_type
from gm.diffusion.steps import NEARLY_ZERO, sigma_to_timestep, sigmas
from gm.sampling.emphasis import Emphasis, plain
from gm.sampling.settings import Request, Settings

if TYPE_CHECKING:
    from gm.models.architecture import ModelArchitecture
    from gm.sampling.networks import Denoiser

States = tuple[np.ndarray, np.ndarray]  # of one text: context (77, C) and pooled (P,)


class Tokenize(Protocol):
    """``gm.data.tokens.Tokenizers``."""

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, ...]: ...


class Draws(Protocol):
    """The part of ``gm.sampling.networks.Networks`` that one expert needs."""

    architecture: "ModelArchitecture"

    def encode_text(self, *ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]: ...

    def denoiser(
        self,
        context: np.ndarray,
        pooled: np.ndarray,
        time_ids: np.ndarray,
        copies: int,
        guidance: np.ndarray | None = None,
    ) -> "Denoiser": ...


class TextStates:
    """What text encoders make of prompts: each text is encoded once, in batches of one shape.

    With ``emphasis``, brackets in a prompt are weights and not letters.
    """

    def __init__(
        self,
        tokenizers: Tokenize,
        encode: Callable[..., tuple[np.ndarray, np.ndarray]],
        emphasis: Emphasis | None = None,
    ):
        self._tokenizers, self._encode, self._emphasis = tokenizers, encode, emphasis
        self._known: dict[str, States] = {}

    def learn(self, texts: Sequence[str], batch_size: int) -> None:
        """Encode those that were not encoded yet."""
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        for first in range(0, len(new), batch_size):
            part = new[first : first + batch_size]
            filled = part + part[-1:] * (batch_size - len(part))
            ids = self._tokenizers.encode([plain(text) for text in filled] if self._emphasis else filled)
            context, pooled = self._encode(*ids)
            for row, text in enumerate(part):
                states = self._emphasis.apply(text, context[row]) if self._emphasis else context[row]
                self._known[text] = states, pooled[row]

    def __getitem__(self, text: str) -> States:
        return self._known[text]


class Expert:
    """A UNet that draws all steps of a run, or those of its half of the schedule.

    ``alphas_cumprod`` (T,) and ``prediction_type`` are those it was trained with. ``texts``: the text states it shares
    with another expert; by default ``networks`` encodes what ``tokenizers`` make of the prompts, read with weights if
    they are ``weighted`` (``gm.sampling.emphasis``).
    """

    def __init__(
        self,
        networks: Draws,
        tokenizers: Tokenize | None,
        alphas_cumprod: np.ndarray,
        prediction_type: str = "epsilon",
        texts: TextStates | None = None,
        weighted: bool = False,
    ):
        check_prediction_type(prediction_type, alphas_cumprod)
        self.networks, self.alphas_cumprod, self.prediction_type = networks, alphas_cumprod, prediction_type
        if texts is None:
            widths = [encoder.width for encoder in networks.architecture.text_encoders]
            texts = TextStates(tokenizers, networks.encode_text, Emphasis(tokenizers, widths) if weighted else None)
        self.texts = texts

    def encode_texts(self, requests: Sequence[Request], batch_size: int) -> None:
        """Encode what the requests need and was not encoded yet."""
        texts = [request.prompt for request in requests] + [request.negative_prompt for request in requests]
        self.texts.learn(texts, batch_size)

    def model(self, batch: Sequence[Request], settings: Settings) -> "Denoiser":
        """``model(latents (B, 4, h, w), timestep)``: the guided prediction for these requests.

        A network distilled to be told the guidance scale makes it in one evaluation, without a negative prompt.
        """
        width = self.networks.architecture.unet.guidance_dim
        guided = settings.guided and width is None
        conditions = self._conditions(batch, settings, guided)
        if width is not None:
            told = np.tile(embedded(settings.guidance_scale, width), (len(batch), 1))
            return self.networks.denoiser(*conditions, copies=1, guidance=told)
        predict = self.networks.denoiser(*conditions, copies=2 if guided else 1)
        if not guided:
            return predict

        def model(latents: np.ndarray, timestep: float) -> np.ndarray:
            unconditional, conditional = np.split(predict(latents, timestep), 2)
            prediction = classifier_free(unconditional, conditional, settings.guidance_scale)
            return rescale(prediction, conditional, settings.guidance_rescale)

        return model

    def own_timestep(self, timestep: float, alphas_cumprod: np.ndarray) -> float:
        """The timestep at which this expert knows the noise level that another schedule has at ``timestep``."""
        if np.array_equal(alphas_cumprod, self.alphas_cumprod):
            return timestep
        levels = sigmas(np.maximum(alphas_cumprod, NEARLY_ZERO))
        level = np.interp(timestep, np.arange(len(levels)), levels)
        return float(sigma_to_timestep(level, self.alphas_cumprod))

    def _conditions(self, batch: Sequence[Request], settings: Settings, guided: bool) -> list[np.ndarray]:
        """Context, pooled and time ids of a batch; with guidance, those of the negative prompts before them."""
        told = settings.time_ids(self.networks.architecture.size_numbers)
        rows = [(*self.texts[request.prompt], told) for request in batch]
        if guided:
            rows = [self._unconditional(request, settings) for request in batch] + rows
        return [np.stack([np.asarray(row[part], np.float32) for row in rows]) for part in range(3)]

    def _unconditional(self, request: Request, settings: Settings) -> tuple:
        model = self.networks.architecture
        context, pooled = self.texts[request.negative_prompt]
        told = settings.time_ids(model.size_numbers, negative=True)
        chosen = model.unconditional if settings.unconditional == "auto" else settings.unconditional
        if request.negative_prompt or chosen == "empty":
            return context, pooled, told
        if chosen == "zeros":
            return np.zeros_like(context), np.zeros_like(pooled), told
        return context, pooled, (0,) * len(told)

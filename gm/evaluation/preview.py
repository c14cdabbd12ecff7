"""Pictures of a network that is being trained, scored with a CLIP where there is one."""

from pathlib import Path

from gm.config import Config
from gm.evaluation.clip_score import ClipScorer
from gm.evaluation.pictures import CLIP_SCORES, write_scores
from gm.models.unet import UNet
from gm.sampling.preview import Preview


class ScoredPreview:
    """``gm.sampling.preview.Preview``, whose pictures of prompts are scored with ``validation.clip_weight``.

    Raises:
        SuiteError: as Preview does; no such CLIP.
    """

    def __init__(self, config: Config, unet: UNet):
        self._clip, self._scorer = config.validation.clip_weight, None
        if self._clip:  # first, as it takes little: what is wrong with it is told before anything is compiled
            self._scorer = ClipScorer.load(self._clip, config.model.tokenizer)
        self._preview = Preview(config, unet)

    def __call__(self, folder: Path) -> dict[str, float]:
        """Draw into ``folder``; the scores are written there (``clip_score.json``), the summary's values returned."""
        shown = self._preview(folder)
        if self._scorer is None:
            return {}
        names, prompts = [one.name for one in shown], [one.prompt for one in shown]
        scores = self._scorer.score([one.picture for one in shown], prompts)
        write_scores(folder / CLIP_SCORES, scores, names, prompts, self._clip)
        return scores.metrics()

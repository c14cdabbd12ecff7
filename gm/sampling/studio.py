"""A place that keeps models ready for a page which is rendered anew at every click.

MindSpore lives in one thread, which loads, compiles and draws; whoever asks waits, and looks at a ``Progress``.
"""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import astuple, dataclass
from functools import cache
from pathlib import Path

from gm.config import Config
from gm.data.tokens import Tokenizers
from gm.sampling.output import picture_name
from gm.sampling.pipeline import Pipeline
from gm.sampling.run import build, check_weights, checked_wishes, draw, start_device

KEPT = 2  # models at once, as for two side by side
WEIGHT_ENDINGS = (".ckpt", ".safetensors")


@dataclass
class Progress:
    """What is being done, for a page to show; ``share`` is of the whole drawing, 0 to 1."""

    words: str = "waiting for the drawing before"
    share: float = 0.0


class Studio:
    """Draws what configurations ask for, one after the other; the last models used stay loaded and compiled."""

    def __init__(self) -> None:
        self._worker = ThreadPoolExecutor(1, "studio")
        self._pipelines: dict[tuple, Pipeline] = {}
        self._started = False

    def draw(
        self, configs: Sequence[Config], prompts: list[str], folders: Sequence[Path]
    ) -> tuple["Future[list[list[Path]]]", Progress]:
        """Begin to draw the prompts by each configuration, into its folder: the paths of the pictures.

        Raises:
            SuiteError: what can be told at once; the future raises the same for what shows while drawing.
        """
        for config in configs:
            check_weights(config)
            checked_wishes(config, prompts)
        progress = Progress()
        return self._worker.submit(self._draw, configs, prompts, folders, progress), progress

    def _draw(
        self, configs: Sequence[Config], prompts: list[str], folders: Sequence[Path], progress: Progress
    ) -> list[list[Path]]:
        if not self._started:
            progress.words = "starting MindSpore"
            start_device(configs[0])
            self._started = True
        drawn = []
        for index, (config, folder) in enumerate(zip(configs, folders)):
            name = Path(config.model.weight).name
            progress.words = f"loading {name}"
            pipeline = self._pipeline(config)
            progress.words = f"{name}: compiling where the size is new"

            def on_step(done: int, total: int, index: int = index, name: str = name) -> None:
                progress.words = f"{name}: step {done} of {total}"
                progress.share = (index + done / total) / len(configs)

            wishes = checked_wishes(config, prompts)
            draw(pipeline, wishes, config, folder, progress=False, on_step=on_step)
            drawn.append([folder / picture_name(number, wish) for number, wish in enumerate(wishes)])
        return drawn

    def _pipeline(self, config: Config) -> Pipeline:
        sample = config.sample
        stage2 = (sample.stage2_weight, sample.stage2_prediction_type, sample.stage2_rescale_betas_zero_snr)
        files = tuple(_version(path) for path in (config.model.weight, sample.stage2_weight) if path)
        key = (astuple(config.model), astuple(config.diffusion), stage2, files)
        # what was used last stands last
        pipeline = self._pipelines.pop(key, None) or build(config, Tokenizers.of(config.model))
        self._pipelines[key] = pipeline
        while len(self._pipelines) > KEPT:
            del self._pipelines[next(iter(self._pipelines))]
        return pipeline


@cache
def shared_studio() -> Studio:
    """The one of this process."""
    return Studio()


def _version(path: str) -> tuple[int, int]:
    """Changes when a file is written again."""
    stat = Path(path).stat()
    return stat.st_mtime_ns, stat.st_size


def weights_in(*places: Path) -> list[str]:
    """The weight files and diffusers folders in these folders, for a user to choose from."""
    found = []
    for place in places:
        if place.is_dir():
            for path in sorted(place.iterdir()):
                if path.suffix in WEIGHT_ENDINGS or (path / "model_index.json").is_file():
                    found.append(str(path))
    return list(dict.fromkeys(found))

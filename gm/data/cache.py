"""The cache: what the frozen networks make of every picture and caption, kept under the hash of all it depends on.

``--task cache`` fills it, training reads it. An entry's key is the hash of what the entry follows from, so a changed
picture, caption, crop, network, tokenizer or precision has another key: stale entries are never found, and what is
found again is never made again.

    <cache.path>/latents/*.safetensors   posterior moments (8, h, w) of framed pictures
    <cache.path>/texts/*.safetensors     context (77, C) and pooled (P,) of captions, the empty one among them
    <cache.path>/pictures.json, weights.json   hashes of files that have not changed since
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from gm.config import Config
from gm.data import datasets
from gm.data.cache_plan import Plan
from gm.data.cache_store import ShardStore, damaged
from gm.data.cache_work import Captions, Pictures
from gm.data.encoders import Encoders
from gm.data.prefetch import uncollected
from gm.data.sample import Problem, Sample
from gm.data.tokens import Tokenizers
from gm.data.transforms import Framing
from gm.errors import SuiteError

log = logging.getLogger(__name__)


def build(
    config: Config,
    encoders: Encoders | None = None,
    tokenizers: Tokenizers | None = None,
    rank: int = 0,
    progress: bool = True,
    samples: list[Sample] | None = None,
) -> None:
    """Make every entry that training with ``config`` needs and that is not there; says what it did in the log.

    Both kinds are made unless only one of ``cache.latent`` and ``cache.text_embedding`` is asked for. Shards are the
    same bytes whoever makes them and however often the work is interrupted. Processes that call this for one folder, be
    they ranks of a job or not, share the work, and each returns when all of it is there; what one leaves undone the
    others do. ``rank`` 0 shows the progress and writes the index. ``samples``: only these of the folder.

    Raises:
        SuiteError: pictures that are broken or changed meanwhile, or with on_bad_sample=skip more than that leaves out,
            values that are not finite, no room on the disk.
        OSError: the cache cannot be written.
    """
    both = config.cache.latent == config.cache.text_embedding
    problems: list[Problem] = []
    if samples is None:
        samples, problems = datasets.inspect(config.data)
        _judge(config, samples, problems, {})
    plan = Plan.gather(config, samples, encoders, tokenizers)
    pictures = plan.needed_latents() if both or config.cache.latent else {}
    captions = plan.needed_texts() if both or config.cache.text_embedding else {}
    for store in (plan.latents, plan.texts):
        for path in store.remove_damaged():
            log.warning("cache: %s is damaged; it is made again", path)
    refused = plan.refused_samples() if pictures else {}
    if refused:
        _judge(config, samples, problems, refused)
    show = progress and rank == 0
    work = Pictures(config, plan, pictures, show), Captions(config, plan, captions, show)
    made = [kind.do(wait=False) for kind in work]
    made = [count + kind.do(wait=True) for count, kind in zip(made, work)]
    if rank == 0:
        plan.latents, plan.texts = ShardStore(plan.latents.folder), ShardStore(plan.texts.folder)  # of all processes
        plan.latents.save_index()
        plan.texts.save_index()
        if pictures and (found := plan.refused_samples()) != refused:
            _judge(config, samples, problems, found)
    did = "all there: nothing to do"
    if any(kind.total for kind in work):
        did = f"{made[0]} and {made[1]} encoded now"
        others = [kind.total - count for kind, count in zip(work, made)]
        did += f", {others[0]} and {others[1]} by other processes" if any(others) else ""
    log.info("cache %s: %d pictures and %d captions needed, %s", config.cache.path, len(pictures), len(captions), did)


@uncollected()
def open(
    config: Config,
    samples: list[Sample] | None = None,
    encoders: Encoders | None = None,
    tokenizers: Tokenizers | None = None,
) -> "Cache":
    """The cache for training with ``config``, which must hold all that is asked of it (``cache.latent``,
    ``cache.text_embedding``). Raises SuiteError that names what is missing."""
    if samples is None:
        samples = datasets.scan(config.data)
    plan = Plan.gather(config, samples, encoders, tokenizers)
    for path in plan.latents.damaged + plan.texts.damaged:
        raise damaged(path)
    if config.cache.latent:
        needed = plan.needed_latents()
        refused = plan.refused_samples()
        datasets.judge(config.data, _problems(refused), len(samples) - len(refused))
        plan.samples = [sample for sample in samples if sample.id not in refused]
        there = (plan.latents, plan.latents.refused)
        lacking = [sample.id for key, (sample, _) in needed.items() if not any(key in entries for entries in there)]
        _complain(config.cache.path, "latents of pictures", lacking, len(needed))
    if config.cache.text_embedding:
        needed = plan.needed_texts()
        lacking = [repr(caption) for key, caption in needed.items() if key not in plan.texts]
        _complain(config.cache.path, "states of captions", lacking, len(needed))
    return Cache(plan, config.cache.latent, config.cache.text_embedding)


class Cache:
    """Read access; all arrays come back as float32. ``samples`` are the usable ones."""

    def __init__(self, plan: Plan, has_latents: bool, has_texts: bool):
        self._plan = plan
        self.samples = plan.samples
        self.has_latents = has_latents
        self.has_texts = has_texts

    def framing(self, sample: Sample, epoch: int) -> Framing:
        """How the sample is framed in that epoch: the variants take turns."""
        return self._plan.geometry.framing(sample, epoch % self._plan.variants)

    def moments(self, sample: Sample, epoch: int) -> np.ndarray:
        """Mean and log variance of the VAE's posterior: (8, h, w) float32."""
        key, _ = self._plan.latent_key(sample, epoch % self._plan.variants)
        return self._plan.latents.read(key)["moments"].astype(np.float32)

    def text(self, caption: str) -> tuple[np.ndarray, np.ndarray]:
        """Context (77, C) and pooled (P,) float32 of a caption; "" is the empty prompt."""
        entry = self._plan.texts.read(self._plan.keys.text(caption))
        return entry["context"].astype(np.float32), entry["pooled"].astype(np.float32)


def _judge(config: Config, samples: Sequence[Sample], problems: Sequence[Problem], refused: Mapping[str, str]) -> None:
    """Report ``problems`` of the scan and ``refused`` samples of it. Raises SuiteError if these are too many."""
    report = Path(config.cache.path) / datasets.REPORT
    every = sorted([*problems, *_problems(refused)], key=lambda problem: problem.id)
    datasets.write_report(report, every)
    datasets.judge(config.data, every, len(samples) - len(refused), report)


def _problems(refused: Mapping[str, str]) -> list[Problem]:
    return [Problem(id, reason) for id, reason in sorted(refused.items())]


def _complain(path: str, what: str, lacking: list[str], needed: int) -> None:
    if lacking:
        named = ", ".join(sorted(lacking)[:3]) + (f" and {len(lacking) - 3} more" if len(lacking) > 3 else "")
        raise SuiteError(
            f"cache {path} lacks {len(lacking)} of {needed} {what} ({named}): never made, or picture, caption, "
            "framing, weights, tokenizer or precision changed since; run the same command with --task cache"
        )

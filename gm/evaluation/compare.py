"""Which checkpoint to take: the same pictures and scores of each, side by side."""

import copy
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

from gm.config import Config
from gm.data.tokens import Tokenizers
from gm.evaluation.checkpoints import Checkpoint, Subject
from gm.evaluation.clip_score import ClipScorer
from gm.evaluation.eval_loss import eval_loss_of
from gm.evaluation.pictures import CLIP_SCORES, write_scores
from gm.files import replacing, write_json, write_text
from gm.sampling.emphasis import plain
from gm.sampling.networks import load_networks
from gm.sampling.output import contact_sheet, picture_name, slug
from gm.sampling.pipeline import Pipeline
from gm.sampling.prompts import Wish, read_prompts
from gm.sampling.run import checked_wishes, draw, schedule, second_stage
from gm.training.plots import plot_eval_loss

TABLE, RECORD, GRID, CURVES = "compare.md", "compare.json", "grid.png", "eval_loss.png"
# Measures of a checkpoint: what it is called, how it is printed, and whether more is better.
MEASURES = {"eval_loss": ("evaluation loss", ".5f", False), "clip_score": ("CLIP score", ".2f", True)}

# Pictures with their prompts -> a share of 0 to 1, such as those that show what they should.
Judge = Callable[[Sequence[Image.Image], Sequence[str]], float]

log = logging.getLogger(__name__)


def compare(
    config: Config, checkpoints: Sequence[Checkpoint], folder: Path, judges: dict[str, Judge] | None = None
) -> list[dict]:
    """Draw and measure each checkpoint; write grid, table and records into ``folder``; return the records.

    Drawn are the prompts of section ``sample``, each checkpoint with the same seeds, into a folder of its own (with
    ``sample.stage2_weight`` each as the first of two stages); scored with ``validation.clip_weight``, if given, and by
    the ``judges``, more being better. The evaluation loss is measured on ``validation.eval_data_path``, if given.

    Raises:
        SuiteError: weights, prompts or pictures that are missing or do not fit.
    """
    sample, validation = config.sample, config.validation
    wishes = checked_wishes(config, read_prompts(sample.prompt))
    read = plain if sample.weighted_prompts else str
    prompts = [read(wish.request.prompt) for wish in wishes]
    scorer = ClipScorer.load(validation.clip_weight, config.model.tokenizer) if validation.clip_weight else None
    subject = Subject(config)
    loss = eval_loss_of(config, subject) if validation.eval_data_path else None
    networks = load_networks(config.model.weight, subject.unet)
    abar, kind = schedule(config.diffusion), config.diffusion.prediction_type
    pipeline = Pipeline(networks, Tokenizers.of(config.model), abar, kind, weighted=sample.weighted_prompts)
    if sample.stage2_weight:
        pipeline.second = second_stage(config, pipeline)
    records, rows = [], []
    for number, checkpoint in enumerate(checkpoints, 1):
        subject.hold(checkpoint.path)
        place = f"{number:02d}_{slug(checkpoint.label)}"
        told = copy.deepcopy(config)
        told.model.weight = str(checkpoint.path)  # what the pictures' own settings name
        pictures = [one.picture for one in draw(pipeline, wishes, told, folder / place)]
        rows.append(pictures)
        record = {"label": checkpoint.label, "file": str(checkpoint.path), "pictures": place}
        if loss is not None:
            evaluation = loss.measure().record(number)
            record |= {name: evaluation[name] for name in ("eval_loss", "timesteps", "losses")}
        if scorer is not None:
            scores = scorer.score(pictures, prompts)
            names = [picture_name(index, wish) for index, wish in enumerate(wishes)]
            write_scores(folder / place / CLIP_SCORES, scores, names, prompts, validation.clip_weight)
            record |= {"clip_score": scores.summary()["score"]["mean"], "clip": scores.summary()}
        record |= {name: judge(pictures, prompts) for name, judge in (judges or {}).items()}
        records.append(record)
        log.info("%s: %s", checkpoint.label, ", ".join(_told(record, name) for name in measured(record, judges)))
    _write(folder, records, rows, wishes, judges)
    return records


def measured(record: dict, judges: dict[str, Judge] | None) -> list[str]:
    """The measures that a record has, in the order they are shown."""
    return [name for name in (*MEASURES, *(judges or {})) if name in record]


def _properties(name: str) -> tuple[str, str, bool]:
    return MEASURES.get(name, (name, ".3f", True))


def _told(record: dict, name: str) -> str:
    title, form, _ = _properties(name)
    return f"{title} {record[name]:{form}}"


def table(records: Sequence[dict], judges: dict[str, Judge] | None = None) -> str:
    """Markdown: a row for each checkpoint, the best of each measure bold."""
    names = measured(records[0], judges)
    titles = [f"{_properties(name)[0]} ({'more' if _properties(name)[2] else 'less'} is better)" for name in names]
    best = {name: (max if _properties(name)[2] else min)(record[name] for record in records) for name in names}
    lines = [" | ".join(["| checkpoint", *titles, "file |"]), "|---" * (len(names) + 2) + "|"]
    for record in records:
        cells = [format(record[name], _properties(name)[1]) for name in names]
        cells = [f"**{cell}**" if record[name] == best[name] else cell for name, cell in zip(names, cells)]
        lines.append(" | ".join([f"| {record['label']}", *cells, f"`{record['file']}` |"]))
    return "\n".join(lines)


def _write(
    folder: Path,
    records: list[dict],
    rows: list[list[Image.Image]],
    wishes: list[Wish],
    judges: dict[str, Judge] | None,
) -> None:
    requests = [wish.request for wish in wishes]
    cells = [rows[column][row] for row in range(len(wishes)) for column in range(len(records))]
    labels = [f"{record['label']}: {request.prompt} ({request.seed})" for request in requests for record in records]
    with replacing(folder / GRID) as file:
        contact_sheet(cells, labels, columns=len(records)).save(file, format="PNG")
    page = ["# Checkpoints compared", "", table(records, judges), ""]
    if "eval_loss" in records[0]:
        plot_eval_loss(records, folder / CURVES, [record["label"] for record in records])
        page += [f"![evaluation loss at each timestep]({CURVES})", ""]
    page += [
        f"A row for each prompt and seed, a column for each checkpoint in the order of the table:\n\n![]({GRID})",
        "",
    ]
    write_text(folder / TABLE, "\n".join(page))
    write_json(folder / RECORD, {"checkpoints": records})

"""The evaluation tools from their configuration on: the device made ready, then the work. See ``tools/eval``."""

from collections.abc import Callable, Sequence

from gm.config import Config
from gm.errors import UsageError
from gm.files import make_folder, write_json
from gm.sampling.run import start_device

CURVES, RECORD = "eval_loss.png", "eval_loss.json"


def eval_loss(config: Config, checkpoints: Sequence[str]) -> list[str]:
    """Measure the evaluation loss of checkpoints, by default of ``model.weight``; their curves go into one picture.

    The pictures are those of ``validation.eval_data_path``, else of ``data.path``. Returns what to print.

    Raises:
        SuiteError: one line naming the thing and the remedy.
    """
    config.validation.eval_data_path = config.validation.eval_data_path or config.data.path
    if not config.validation.eval_data_path:
        raise UsageError("nothing to evaluate on: name a folder of pictures and captions with --data_path")
    start_device(config)
    from gm.evaluation.checkpoints import check, find
    from gm.evaluation.eval_loss import evaluate
    from gm.training.plots import plot_eval_loss

    found = find(checkpoints or [config.model.weight])
    check(found, config.model.weight)
    folder = make_folder(config.sample.save_path)
    records = [one.record(index) for index, one in enumerate(evaluate(config, found))]
    plot_eval_loss(records, folder / CURVES, [checkpoint.label for checkpoint in found])
    for record, checkpoint in zip(records, found):
        del record["step"]
        record |= {"label": checkpoint.label, "file": str(checkpoint.path)}
    write_json(folder / RECORD, {"data_path": config.validation.eval_data_path, "checkpoints": records})
    rows = [f"{record['eval_loss']:10.6f}  {record['label']}" for record in records]
    return [f"{'eval loss':>10}  checkpoint", *rows, f"wrote {folder / CURVES} and {RECORD}"]


def compare(config: Config, checkpoints: Sequence[str], judges: dict[str, Callable] | None = None) -> list[str]:
    """Draw and score checkpoints side by side; returns what to print. ``judges``: ``gm.evaluation.compare.Judge``.

    Raises:
        SuiteError: one line naming the thing and the remedy.
    """
    if not checkpoints:
        raise UsageError("nothing to compare: --checkpoints runs/my_run, or files, after --weight with the whole model")
    if not config.sample.prompt.strip():
        raise UsageError('nothing to draw: --prompt "your prompt", or a text file with one prompt a line')
    start_device(config)
    from gm.evaluation import compare as comparison
    from gm.evaluation.checkpoints import check, find

    found = find(checkpoints)
    check(found, config.model.weight)
    folder = make_folder(config.sample.save_path)
    records = comparison.compare(config, found, folder, judges)
    return [comparison.table(records, judges), f"wrote {folder / comparison.TABLE} with {comparison.GRID}"]

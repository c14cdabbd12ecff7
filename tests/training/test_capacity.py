"""The table of what fits on how many devices."""

from pathlib import Path

from gm.config import load
from gm.models.architecture import TINY_SDXL
from gm.training.capacity import DEVICES, table

ROOT = Path(__file__).resolve().parents[2]


def test_the_documentation_has_todays_table(load_door):
    tool = load_door("tools/docs/sharding.py")
    page = tool.PAGE.read_text(encoding="utf-8")
    assert tool.updated(page) == page


def test_a_row_for_every_stage_and_what_does_not_fit_is_told():
    config = load(["--config", str(ROOT / "configs" / "training" / "tiny_sdxl.yaml"), "--data_path", "D"])
    rows = [line.split("|") for line in table(config, TINY_SDXL, 59).splitlines()[2:]]
    assert [(int(row[1]), int(row[3])) for row in rows] == [(1, 0)] + [(n, s) for n in DEVICES[1:] for s in range(4)]
    assert "does not fit" in table(config, TINY_SDXL, 0.001)
    assert "does not fit" not in table(config, TINY_SDXL, 59)

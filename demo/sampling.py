"""A page in the browser that draws pictures from prompts, one model or two side by side.

    python demo/sampling.py --config configs/inference/tiny_sdxl.yaml
    python demo/sampling.py --weight merged.ckpt

Takes the flags of sampling_without_streamlit.py, which set what the page begins with. Streamlit reads its own settings
from the environment, such as STREAMLIT_SERVER_PORT. Needs the extra "ui": bash scripts/setup.sh --extras ui
"""

import importlib.util
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gm.config import Config, load
from gm.errors import UsageError, run_door

DEFAULT_CONFIG = Path(__file__).resolve().parents[1] / "configs" / "inference" / "sd_xl_base.yaml"
FIRST_PROMPT = "a red circle on grey"


def main(arguments: list[str]) -> None:
    """Check the flags, then give way to Streamlit."""
    configuration(arguments)
    if importlib.util.find_spec("streamlit") is None:
        raise UsageError("the page needs Streamlit: bash scripts/setup.sh --extras ui")
    plain = ["--browser.gatherUsageStats", "false", "--client.toolbarMode", "minimal"]
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "streamlit", "run", __file__, *plain, "--", *arguments])


def configuration(arguments: list[str]) -> Config:
    """What the page begins with."""
    if not any(argument.partition("=")[0] == "--config" for argument in arguments):
        arguments = ["--config", str(DEFAULT_CONFIG), *arguments]
    config = load(arguments, {"sample.prompt": FIRST_PROMPT}, door="sample", usage=__doc__)
    for flag in ("img", "init_latent_path", "save_latent"):
        if getattr(config.sample, flag):
            raise UsageError(f"the page draws from prompts alone: --{flag} is for sampling_without_streamlit.py")
    return config


def page(arguments: list[str]) -> None:
    """Render the page; Streamlit calls this anew at every click."""
    from gm.sampling.page import page

    page(configuration(arguments))


if __name__ == "__main__":
    if "streamlit" in sys.modules:  # which runs this file in a process of its own
        page(sys.argv[1:])
    else:
        run_door(main)

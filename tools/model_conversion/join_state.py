"""Join the parts that several devices saved of a training's state, so that it is as one device saves it.

    python tools/model_conversion/join_state.py --state runs/my_run/state/step_1000

Weights and averages need none of this: they are whole at every save. A run resumes from a state in parts as well, on
any number of devices.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from gm.config.flags import Parser
from gm.errors import run_door


def main(arguments: list[str]) -> None:
    parser = Parser(__doc__)
    parser.add_argument("--state", metavar="FOLDER", required=True, help="state/step_N of a run")
    values = parser.parse(arguments)
    from gm.training.state import join_state  # imports MindSpore, which takes seconds

    count = join_state(Path(values.state))
    print(f"joined {count} parts in {values.state}")


if __name__ == "__main__":
    run_door(main)

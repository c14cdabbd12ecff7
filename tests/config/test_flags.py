"""Command lines without a configuration: every mistake is one line that names the flag."""

import pytest

from gm.config.flags import Parser, positive
from gm.errors import UsageError


@pytest.fixture
def parser():
    parser = Parser("What it does.")
    parser.add_argument("--folder", required=True)
    parser.add_argument("--rounds", type=positive, default=3)
    parser.add_argument("--kind", choices=("a", "b"))
    return parser


def test_what_is_given_is_parsed(parser):
    values = parser.parse(["--folder", "x", "--rounds=2"])
    assert (values.folder, values.rounds, values.kind) == ("x", 2, None)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "required: --folder"),
        (["--foldr", "x"], "unknown flag --foldr: did you mean --folder?"),
        (["--fold", "x"], "unknown flag --fold: did you mean --folder?"),  # not guessed from its beginning
        (["--totally_different"], "unknown flag --totally_different: see --help"),
        (["--folder"], "--folder: expected one argument"),
        (["--folder", "x", "y"], "unrecognized arguments: y"),
        (["--folder", "x", "--kind", "c"], "--kind: invalid choice: 'c'"),
        *[(["--folder", "x", "--rounds", text], f"--rounds: a whole number of at least 1 is needed, not {text!r}")
          for text in ("0", "-2", "2.5", "many")],
    ],
)  # fmt: skip
def test_every_mistake_is_one_line(parser, arguments, told):
    with pytest.raises(UsageError) as caught:
        parser.parse(arguments)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)

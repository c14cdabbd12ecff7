"""A cache filled with arithmetic encoders, as a process of its own.

    small_build.py PICTURES CACHE [pause=SECONDS] [rank=NUMBER] [processes=True]

``pause`` slows each batch down. ``processes``: decode in processes however few the pictures are. The last line says how
many pictures and captions were encoded here, or what went wrong.
"""

import importlib.util
import logging
import sys
import time
from ast import literal_eval
from pathlib import Path

from gm.config import Config
from gm.data import cache, cache_work, decoding
from gm.errors import run_door


def fakes():
    """The neighbouring conftest."""
    spec = importlib.util.spec_from_file_location("fakes", Path(__file__).with_name("conftest.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main(arguments: list[str]) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    pictures, folder, *more = arguments
    options = {name: literal_eval(value) for name, value in (word.split("=") for word in more)}
    names = fakes()

    class Slow(names.FakeEncoders):
        def encode_pictures(self, pictures):
            time.sleep(options.get("pause", 0))
            return super().encode_pictures(pictures)

        def encode_text(self, ids_1, ids_2):
            time.sleep(options.get("pause", 0))
            return super().encode_text(ids_1, ids_2)

    cache_work.SHARD_ENTRIES = 2
    cache_work.PIXELS_PER_BATCH = 2 * 32 * 32
    if options.get("processes"):
        decoding.WORTH_PROCESSES = 0
    config = Config()
    config.data.path, config.cache.path, config.data.resolution = pictures, folder, 32
    cache.build(config, Slow(), names.FakeTokenizers(), options.get("rank", 0), progress=False)


if __name__ == "__main__":
    run_door(main)

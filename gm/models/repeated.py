"""Blocks that occur many times in a network, compiled once where MindSpore can."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import mindspore as ms
from mindspore.common.lazy_inline import lazy_inline


def compiled_once(init: Callable[..., None]) -> Callable[..., None]:
    """Decorate ``__init__`` of a Cell: on Ascend, Cells built with equal arguments share one compiled subgraph.

    That is MindSpore's ``lazy_inline``, which it supports on Ascend only; elsewhere ``init`` stays as it is. Which it
    is, is asked when a Cell is built. The arguments must tell all that makes two Cells differ.
    """
    shared = lazy_inline(init)

    @wraps(init)
    def chosen(self: Any, *arguments: Any, **named: Any) -> None:
        (shared if ms.get_context("device_target") == "Ascend" else init)(self, *arguments, **named)

    return chosen

"""Process settings that MindSpore reads once, while it is being imported."""

import os
from importlib.metadata import PackageNotFoundError, version


def prepare_environment() -> None:
    """Set what must be in the environment before ``import mindspore``; what the user has set stays."""
    # MindSpore's own warnings bury ours; GLOG_v=2 brings them back.
    os.environ.setdefault("GLOG_v", "3")
    # MindSpore's own choice, made before another package (Streamlit) loads protobuf in the way that it cannot use.
    os.environ.setdefault("PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION", "python")
    try:
        release = tuple(int(part) for part in version("mindspore").split(".")[:2])
    except (PackageNotFoundError, ValueError):
        return
    # oneDNN 3.10, bundled from 2.9 on, runs 3x3 convolutions with reference code on AVX-512 hosts, 200 times too slow.
    if release >= (2, 9):
        os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX2")

"""The grid of devices: degrees as MaxDiffusion's users write them, and who is whose neighbour."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gm.config.sections.machine import ParallelConfig
from gm.errors import UsageError
from gm.parallel.mesh import AXES, Mesh


def test_all_devices_divide_the_batch_unless_told_otherwise():
    assert Mesh.of(ParallelConfig(), 1).degrees == (1, 1, 1)
    assert Mesh.of(ParallelConfig(), 8).degrees == (8, 1, 1)
    assert Mesh.of(ParallelConfig(zero_stage=2), 8).degrees == (1, 8, 1)
    assert Mesh.of(ParallelConfig(zero_stage=2, ici_fsdp_parallelism=2), 8).degrees == (4, 2, 1)
    assert Mesh.of(ParallelConfig(ici_tensor_parallelism=2), 8).degrees == (4, 1, 2)
    assert Mesh.of(ParallelConfig(), 8).describe() == "data 8"


@given(st.sampled_from(AXES), st.tuples(*[st.integers(1, 4)] * 3))
def test_one_degree_is_what_the_others_leave(axis, degrees):
    flags = {f"ici_{name}_parallelism": degree for name, degree in zip(AXES, degrees)}
    flags[f"ici_{axis}_parallelism"] = -1
    mesh = Mesh.of(ParallelConfig(zero_stage=1, **flags), math.prod(degrees))
    assert mesh.degrees == degrees


@pytest.mark.parametrize(
    ("flags", "size", "line"),
    [
        ({"ici_data_parallelism": 3}, 4, "does not make up 4 devices"),
        ({"ici_data_parallelism": -1, "ici_tensor_parallelism": 3}, 4, "--ici_tensor_parallelism 3 does not make up 4"),
        ({"ici_data_parallelism": -1, "ici_tensor_parallelism": -1}, 4, "more than one -1"),
        ({"ici_data_parallelism": 0}, 4, "at least 1, or -1"),
        ({"ici_fsdp_parallelism": 2}, 4, "nothing to share with --zero_stage 0"),
        ({"dcn_data_parallelism": 3}, 4, "3 servers do not divide 4 devices"),
    ],
)
def test_degrees_that_cannot_be_are_told(flags, size, line):
    with pytest.raises(UsageError, match=line):
        Mesh.of(ParallelConfig(**flags), size)


def test_servers_are_the_outer_part_of_an_axis():
    """Two servers of four: the links within a server serve axis fsdp, those between them axis data."""
    config = ParallelConfig(zero_stage=3, ici_fsdp_parallelism=-1, dcn_data_parallelism=-1)
    mesh = Mesh.of(config, 8, rank=6, servers=2)
    assert mesh.degrees == (2, 4, 1)
    assert mesh.ranks("fsdp") == (4, 5, 6, 7)
    assert mesh.ranks("data") == (2, 6)
    mixed = ParallelConfig(zero_stage=3, ici_fsdp_parallelism=2, ici_data_parallelism=2, dcn_fsdp_parallelism=2)
    mesh = Mesh.of(mixed, 8, rank=0, servers=2)
    assert mesh.degrees == (2, 4, 1)
    assert mesh.ranks("fsdp") == (0, 1, 4, 5)
    with pytest.raises(UsageError, match=r"--dcn_fsdp_parallelism 2 .* does not make up 4 servers"):
        Mesh.of(mixed, 8, servers=4)


@given(st.tuples(*[st.integers(1, 3)] * 3), st.sets(st.sampled_from(AXES)))
def test_groups_of_any_axes_divide_the_ranks_and_number_their_members(degrees, chosen):
    size, axes = math.prod(degrees), [axis for axis in AXES if axis in chosen]
    flags = {f"ici_{name}_parallelism": degree for name, degree in zip(AXES, degrees)}
    meshes = [Mesh.of(ParallelConfig(zero_stage=1, **flags), size, rank) for rank in range(size)]
    groups = {mesh.ranks(*axes) for mesh in meshes}
    assert sorted(np.concatenate([list(group) for group in groups]).tolist()) == list(range(size))
    for rank, mesh in enumerate(meshes):
        assert len(mesh.ranks(*axes)) == mesh.degree(*axes)
        assert mesh.ranks(*axes)[mesh.index(*axes)] == rank

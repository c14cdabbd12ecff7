"""This process among those that train together: its place in the mesh, its groups, what is settled between steps."""

from collections.abc import Callable
from functools import cache
from typing import Any

from gm.parallel.collectives import Group
from gm.parallel.mesh import Mesh
from gm.parallel.peers import Alone, Peers


class World:
    """The processes of a mesh; ``peers`` are how they talk beside the devices. By default one process alone."""

    def __init__(self, mesh: Mesh | None = None, peers: Peers | Alone | None = None):
        self.mesh, self.peers = mesh or Mesh(), peers or Alone()
        self.rank, self.size = self.mesh.rank, self.mesh.size
        self.group = cache(lambda *axes: Group.of(self.mesh, *axes))

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes what there is only once."""
        return self.rank == 0

    @property
    def batch(self) -> tuple[int, int]:
        """Which part of the batch this process has, and how many parts there are."""
        return self.mesh.index("data", "fsdp"), self.mesh.degree("data", "fsdp")

    def wait(self, name: str) -> None:
        """Until all processes are here; ``name`` says where."""
        self.peers.gather(name)

    def of_first(self, name: str, value: Any) -> Any:
        """What the first process says here."""
        return self.peers.gather(name, value)[0]

    def in_turn(self, name: str, work: Callable[[], Any]) -> Any:
        """Do ``work`` in the first process, and only then in the others, which find the files it made."""
        if not self.first:
            self.wait(name)
        result = work()
        if self.first:
            self.wait(name)
        return result

"""Checkpoints of parameters that axis tensor of the mesh divides."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mindspore import Parameter

from gm.parallel.collectives import Group
from gm.training.shared_state import Shares, Slice


@dataclass(frozen=True)
class Slices:
    """``kinds``: how each divided parameter is, by name; ``writes``: this device does, of those with the same parts."""

    kinds: Mapping[str, str]
    group: Group
    writes: bool

    def _owner(self, name: str) -> str:
        """The divided parameter that an average or a moment is of: what its name ends with; "" for none."""
        while name and name not in self.kinds:
            name = name.partition(".")[2]
        return name

    def sort(
        self, weights: Sequence[Parameter], averages: Sequence[Parameter], state: Sequence[Parameter]
    ) -> tuple[list[Parameter], list[Parameter], Shares]:
        """Averages and state that are whole here, and all that is divided."""
        owners = {parameter.name: self._owner(parameter.name) for parameter in (*weights, *averages, *state)}
        owners = {name: owner for name, owner in owners.items() if owner}

        def divided(parameters: Sequence[Parameter]) -> list[Slice]:
            return [
                Slice(
                    parameter,
                    owners[parameter.name],
                    self.kinds[owners[parameter.name]],
                    self.group.index,
                    self.group.size,
                    parameter.name.removesuffix(owners[parameter.name]),
                )
                for parameter in parameters
                if parameter.name in owners
            ]

        def whole(parameters: Sequence[Parameter]) -> list[Parameter]:
            return [parameter for parameter in parameters if parameter.name not in owners]

        shares = Shares(
            divided(weights),
            divided(averages),
            divided(state),
            index=self.group.index,
            count=self.group.size,
            writes=self.writes,
        )
        return whole(averages), whole(state), shares

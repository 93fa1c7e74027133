"""What was done to ``param_groups`` since the last look."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import is_
from typing import Any, NoReturn

Groups = list[dict[str, Any]]


def is_in(group: object, groups: Sequence[object]) -> bool:
    """Whether ``group`` itself is one of ``groups``."""
    return any(group is other for other in groups)


@dataclass
class Change:
    """Between two looks."""

    before: Groups
    now: Groups
    new: Groups  # those that were not there, copies of others among them
    copies: list[
        tuple[dict[str, Any], dict[str, Any]]
    ]  # (new group, the lost one that it is a copy of)
    lost: Groups  # those that are not there any more, nor a copy of them
    same_list: bool

    @property
    def elsewhere(self) -> bool:
        """Whether there is another list, with some of the groups: as if they took turns."""
        return bool(self.lost) and not self.same_list

    def refuse(self) -> NoReturn:
        """Raise RuntimeError: a step needs all groups."""
        raise RuntimeError(
            f"param_groups is another list than before, with {len(self.now)} of the optimizer's "
            f"{len(self.before)} groups; expected all of them in one step, which forms one number of all "
            "gradients. DeepSpeed's ZeRO steps each group by itself, where that is impossible: make one "
            "group there. To remove a group for good, take it out of the list: del optimizer.param_groups[i]"
        )


class KnownGroups:
    """``param_groups`` as it was: the list itself and its members.

    Args:
        groups: the list.
    """

    def __init__(self, groups: Groups) -> None:
        self._list, self._members = groups, list(groups)

    def are(self, groups: Groups) -> bool:
        """Whether nothing was changed."""
        return (
            groups is self._list
            and len(groups) == len(self._members)
            and all(map(is_, groups, self._members))
        )

    def change(self, groups: Groups) -> Change:
        """What was changed.

        Some wrappers of optimizers copy groups: such a copy is known by its parameters.

        Raises:
            RuntimeError: there is no group any more.
        """
        if not groups:
            raise RuntimeError("param_groups is empty; expected at least one group")
        lost = [group for group in self._members if not is_in(group, groups)]
        new = [group for group in groups if not is_in(group, self._members)]
        copies = []
        for group in new:
            own = set(map(id, group["params"]))
            twin = next((g for g in lost if own.intersection(map(id, g["params"]))), None)
            if twin is not None:
                copies.append((group, twin))
                lost = [g for g in lost if g is not twin]
        return Change(self._members, groups, new, copies, lost, groups is self._list)

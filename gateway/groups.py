"""Which policy number each pod is under, or machine: those that are held to the same share one.

The rules this file must obey:

* Nobody is under a number that says what is not meant for it, at no moment. So a number changes what it says
  only where every pod under it is to have the same new thing, and none is to stay as it is; else single pods
  move to a number that says it already, or to a new one.
* Few moves: a pod stays where its number says, or will say, what it is to have.
* One number for one thing, after the change: of several the one with the most pods is it, then the first.
* Deterministic: the same before and the same wish make the same after.

The order in which this is carried out (enforcement.py): numbers say what they are to say, then pods move,
then numbers that nobody is under are released.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
GROUP, MACHINES = "pods-", "machines-"  # and a number: what a group is called


@dataclass(frozen=True, slots=True)
class Groups(Generic[Key]):
    """`of`: pod to the name of its group; `says`: what each group that is needed says, None: not known."""

    of: Mapping[str, str] = field(default_factory=dict)
    says: Mapping[str, Key | None] = field(default_factory=dict)


def assign(
    wanted: Mapping[str, Key],
    staying: Collection[str],
    at: Mapping[str, str],
    said: Mapping[str, Key | None],
    leaving: Collection[str] = (),
    prefix: str = GROUP,
) -> Groups[Key]:
    """Groups for all pods of `wanted` (to what each is to be held) and for the `staying` ones.

    `at`: where each pod is now, those that have gone may be in it; `said`: what each group says now, None
    where that is not known any more; `leaving` pods are to be in no group. `prefix` is that of all names.
    """
    under: dict[str, list[str]] = {name: [] for name in said}
    for pod in sorted([*wanted, *staying]):
        if pod in at:
            under[at[pod]].append(pod)
    pinned = {at[pod] for pod in (*staying, *leaving) if pod in at}
    says = {name: _says(name, under[name], wanted, said, pinned) for name in said}
    home = _homes(says, under, wanted, said)
    names = _fresh(said, prefix)
    for key in dict.fromkeys(wanted[pod] for pod in sorted(wanted)):
        if key not in home:
            home[key] = next(names)
    of = {pod: home[key] for pod, key in wanted.items()} | {pod: at[pod] for pod in staying if pod in at}
    needed = {name: says.get(name, said.get(name)) for name in sorted(set(of.values()), key=_number)}
    return Groups(of, needed | {name: key for key, name in home.items() if name in needed})


def _says(
    name: str,
    pods: Iterable[str],
    wanted: Mapping[str, Key],
    said: Mapping[str, Key | None],
    pinned: Collection[str],
) -> Key | None:
    """What a group is to say: another thing only where all of its pods are to have that."""
    keys = {wanted[pod] for pod in pods if pod in wanted}
    if name in pinned or len(keys) != 1 or said[name] in keys:
        return said[name]
    return next(iter(keys))


def _homes(
    says: Mapping[str, Key | None],
    under: Mapping[str, list[str]],
    wanted: Mapping[str, Key],
    said: Mapping[str, Key | None],
) -> dict[Key, str]:
    """The group of each key that a group says already, else of one that is to say it."""
    meant = Counter((name, wanted[pod]) for name, pods in under.items() for pod in pods if pod in wanted)
    home: dict[Key, str] = {}
    for name in sorted(says, key=lambda n: (says[n] != said[n], -meant[n, says[n]], _number(n))):  # type: ignore[index]
        key = says[name]
        if key is not None:
            home.setdefault(key, name)
    return home


def _fresh(said: Collection[str], prefix: str) -> Iterator[str]:
    return (name for name in (f"{prefix}{number}" for number in count(1)) if name not in said)


def _number(name: str) -> int:
    return int(name.rpartition("-")[2])

"""Groups of pods against a naive model, on random histories: nobody is under what is meant for others."""

from collections.abc import Iterator

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.groups import Groups, assign

PODS = [f"pod{number}" for number in range(8)]
KEYS = ["a", "b", "c", "d"]

# What each pod is to be held to next: a key, what it is held to now, nothing; or it has gone itself.
wishes = st.dictionaries(st.sampled_from(PODS), st.sampled_from([*KEYS, "stay", "leave"]))
histories = st.lists(st.tuples(wishes, st.booleans()), min_size=1, max_size=12)


class Kernel:
    """What is under which number, and what that says: changed one step at a time, as enforcement.py does."""

    def __init__(self) -> None:
        self.at: dict[str, str] = {}
        self.said: dict[str, str | None] = {}

    def steps(self, groups: Groups[str], alive: set[str], leaving: list[str]) -> Iterator[None]:
        for name, key in groups.says.items():
            if key is not None:
                self.said[name] = key
                yield
        for pod in list(self.at):
            if pod not in alive or pod in leaving:
                del self.at[pod]
        for pod, name in groups.of.items():
            self.at[pod] = name
            yield
        for name in self.said.keys() - groups.says.keys():
            assert name not in self.at.values(), f"{name} is released with pods under it"
            del self.said[name]
            yield

    def effective(self) -> dict[str, str | None]:
        return {pod: self.said[name] for pod, name in self.at.items()}


@settings(max_examples=500)
@given(histories)
def test_nobody_is_ever_under_anothers_policy(history: list[tuple[dict[str, str], bool]]) -> None:
    kernel = Kernel()
    model: dict[str, str] = {}  # what each pod is held to, one policy for each
    for wish, restarts in history:
        wanted = {pod: key for pod, key in wish.items() if key in KEYS}
        leaving = [pod for pod, key in wish.items() if key == "leave"]
        staying = [pod for pod, key in wish.items() if key == "stay"]
        after = {pod: wanted.get(pod, model.get(pod)) for pod in wish}
        after = {pod: key for pod, key in after.items() if key is not None and pod not in leaving}
        known = dict.fromkeys(kernel.said) if restarts else dict(kernel.said)
        groups = assign(wanted, staying, kernel.at, known, leaving)
        assert groups == assign(dict(reversed(wanted.items())), staying[::-1], kernel.at, known, leaving)
        moves = {pod for pod, name in groups.of.items() if kernel.at.get(pod, name) != name}
        before = dict(kernel.at)
        for _ in kernel.steps(groups, set(wish), leaving):
            for pod, key in kernel.effective().items():
                told = f"{pod} is under {key}"
                assert pod not in wish or key in (model.get(pod), after.get(pod)), told
        assert kernel.effective() == after
        keys = [key for key in groups.says.values() if key is not None]
        assert len(set(wanted.values())) <= len(keys) <= len(set(keys)) + len(staying)
        for pod in moves:
            says = known[before[pod]]
            assert says != after[pod] or list(known.values()).count(says) > 1, f"{pod} moved for nothing"
        model = after


def test_all_pods_of_a_group_that_change_alike_stay_in_it() -> None:
    at = dict.fromkeys(PODS, "pods-1")
    groups = assign(dict.fromkeys(PODS, "new"), [], at, {"pods-1": "old"})
    assert groups == Groups(at, {"pods-1": "new"})


def test_one_that_changes_alone_moves_alone() -> None:
    at = dict.fromkeys(PODS, "pods-1")
    groups = assign(dict.fromkeys(PODS, "old") | {"pod3": "new"}, [], at, {"pods-1": "old"})
    assert {pod for pod, name in groups.of.items() if name != "pods-1"} == {"pod3"}
    assert groups.says == {"pods-1": "old", "pods-2": "new"}


def test_two_groups_that_become_one_share_the_number_of_the_larger() -> None:
    at = {"pod0": "pods-1", "pod1": "pods-2", "pod2": "pods-2"}
    groups = assign(dict.fromkeys(at, "new"), [], at, {"pods-1": "a", "pods-2": "b"})
    assert groups == Groups(dict.fromkeys(at, "pods-2"), {"pods-2": "new"})


def test_a_group_that_says_it_already_takes_the_others_in() -> None:
    at = {"pod0": "pods-1", "pod1": "pods-1", "pod2": "pods-2"}
    groups = assign(dict.fromkeys(at, "b"), [], at, {"pods-1": "a", "pods-2": "b"})
    assert groups == Groups(dict.fromkeys(at, "pods-2"), {"pods-2": "b"})


def test_two_groups_that_swap_never_mix() -> None:
    at = {"pod0": "pods-1", "pod1": "pods-2"}
    groups = assign({"pod0": "b", "pod1": "a"}, [], at, {"pods-1": "a", "pods-2": "b"})
    assert groups.says == {"pods-1": "b", "pods-2": "a"} or groups.of == {"pod0": "pods-2", "pod1": "pods-1"}


def test_one_whose_object_is_gone_holds_its_group_to_what_it_says() -> None:
    at = {"pod0": "pods-1", "pod1": "pods-1"}
    groups = assign({"pod0": "new"}, ["pod1"], at, {"pods-1": "old"})
    assert groups == Groups({"pod0": "pods-2", "pod1": "pods-1"}, {"pods-1": "old", "pods-2": "new"})


def test_after_a_restart_a_group_says_again_what_all_of_its_pods_are_to_have() -> None:
    at = {"pod0": "pods-3", "pod1": "pods-3", "pod2": "pods-5"}
    known = {"pods-3": None, "pods-5": None, "pods-7": None}
    groups = assign({"pod0": "a", "pod1": "a"}, ["pod2"], at, known)
    assert groups == Groups(at, {"pods-3": "a", "pods-5": None})


def test_a_number_that_is_just_given_up_is_not_taken_at_once() -> None:
    groups = assign({"new": "a"}, [], {"gone": "pods-1"}, {"pods-1": "b"})
    assert groups == Groups({"new": "pods-2"}, {"pods-2": "a"})

"""Rows that change together say what rows that are written one by one would."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.controller.flocks import GONE_MAX, Brand, Flock, Flocks, Row
from services.controller.policy.diff import apply, diff
from services.controller.rows import RowStore

FLOCKS, BRANDS, PODS = 4, 3, 12
PARTS = (b"<aa>", b"<bb>", b"<and longer>")

written = st.tuples(
    st.just("write"), st.integers(0, PODS - 1), st.integers(0, FLOCKS - 1), st.binary(min_size=1, max_size=2)
)
dropped = st.tuples(st.just("drop"), st.integers(0, PODS - 1))
flipped = st.tuples(st.just("flip"), st.integers(0, BRANDS - 1), st.sampled_from(PARTS))
marked = st.tuples(st.just("mark"), st.integers(0, FLOCKS - 1), st.integers(0, BRANDS - 1))
released = st.tuples(st.just("release"), st.integers(0, PODS - 1))
looked = st.tuples(st.just("look"))
taken = st.tuples(st.just("take"))


class Herd:
    """A store with flocks, driven as ``endpoints`` drives it, beside the bodies that it must have."""

    def __init__(self) -> None:
        self.store = RowStore()
        self.flocks = [Flock() for _ in range(FLOCKS)]
        self.brands = [Brand.of(part) for part in PARTS]
        self.flock_of: dict[int, int] = {}
        self.around: dict[int, bytes] = {}
        self.alone: dict[int, bytes] = {}
        self.brand_of = [flock % BRANDS for flock in range(FLOCKS)]
        self.parts = list(PARTS)
        for flock, brand in enumerate(self.brand_of):
            self.store.mark(self.flocks[flock], self.brands[brand])

    def write(self, pod: int, flock: int, around: bytes) -> None:
        self._leave(pod)
        row = self.store.at(subject(pod))
        self.flocks[flock].rows["ns", str(pod)] = row
        self.flock_of[pod], self.around[pod] = flock, around
        self.store.write_member(self.flocks[flock], row, self._body(pod))

    def release(self, pod: int) -> None:
        """A row like any other, with the body that it has."""
        if pod in self.flock_of:
            body = self._body(pod)
            self._leave(pod)
            self.alone[pod] = body
            self.store.put(subject(pod), body)

    def drop(self, pod: int) -> None:
        self._leave(pod)
        self.store.drop(subject(pod))

    def flip(self, brand: int, part: bytes) -> None:
        self.parts[brand] = part
        self.store.flip(self.brands[brand], part)

    def mark(self, flock: int, brand: int) -> None:
        self.brand_of[flock] = brand
        self.store.mark(self.flocks[flock], self.brands[brand])

    def wanted(self) -> dict[str, bytes]:
        members = {subject(pod): self._body(pod) for pod in self.flock_of}
        return members | {subject(pod): body for pod, body in self.alone.items()}

    def _leave(self, pod: int) -> None:
        self.alone.pop(pod, None)
        if pod in self.flock_of:
            del self.flocks[self.flock_of.pop(pod)].rows["ns", str(pod)]

    def _body(self, pod: int) -> bytes:
        return self.around[pod] + self.parts[self.brand_of[self.flock_of[pod]]] + self.around[pod]


def subject(pod: int) -> str:
    return f"yett.policy.endpoint.node.ns.pod-{pod:02}"


@given(st.lists(written | dropped | flipped | marked | released | looked | taken, max_size=40))
def test_a_flip_is_what_writing_every_row_would_be(events: list[tuple[object, ...]]) -> None:
    """However flips, writes, moves, other brands and removals alternate, the rows and the changes are right."""
    herd = Herd()
    published: dict[str, bytes] = {}
    for name, *arguments in (*events, ("take",)):
        if name == "look":
            assert herd.store.rows == herd.wanted()
        elif name == "take":
            changes = herd.store.take_changes()
            assert changes == diff(published, herd.wanted())
            published = apply(published, changes)
        else:
            getattr(herd, str(name))(*arguments)
    assert published == herd.wanted()


def test_a_flip_and_back_is_no_change() -> None:
    """Between two looks a brand may be another and the same again, and a flock may bear another one meanwhile."""
    herd = Herd()
    herd.write(1, 0, b"x")
    herd.store.take_changes()
    herd.flip(0, PARTS[1])
    herd.flip(0, bytes(bytearray(PARTS[0])))
    herd.mark(0, 1)
    herd.mark(0, 0)
    assert herd.store.take_changes() == []


def test_members_that_went_are_not_kept_for_ever() -> None:
    """Pods that come and go leave no more behind than a bound says, though nothing is flipped."""
    flocks, flock = Flocks(), Flock()
    flocks.mark(flock, Brand.of(PARTS[0]))
    for pod in range(2 * GONE_MAX + 10):
        row = Row(subject(pod))
        flocks.adopt(flock, row, PARTS[0])
        flocks.abandon(row)
        assert len(flocks) <= GONE_MAX + 1

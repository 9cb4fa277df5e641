"""Every (protocol, port) has one class: the ranges that cover it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from schemas.policy import PortRange
from schemas.terms import ANY_PROTOCOL
from services.nodeagent.portranges import cut_ranges, index_of

ports = st.sampled_from((0, 1, 79, 80, 81, 443, 65534, 65535))


@st.composite
def ranges(draw) -> PortRange:
    protocol = draw(st.sampled_from((6, 17, 132, 1, 47, ANY_PROTOCOL)))
    if protocol not in (6, 17, 132):
        return PortRange(protocol=protocol)
    first, last = sorted((draw(ports), draw(ports)))
    return PortRange(protocol=protocol, first=first, last=last)


@given(st.sets(ranges(), max_size=6))
def test_segments_say_what_covers_each_port(contents) -> None:
    """For every protocol and port the segment's ranges are exactly those that have it; none means no segment."""
    segments = list(cut_ranges(contents))
    for protocol in (6, 17, 132, 1, 47, 50):
        for port in (0, 1, 2, 79, 80, 81, 442, 443, 444, 65534, 65535) if protocol in (6, 17, 132) else (0,):
            expected = {
                one
                for one in contents
                if one.protocol == protocol and (one.first <= port <= one.last or protocol in (1, 47))
            }
            index = index_of(protocol, port)
            found = [members for segment, members in segments if index in segment]
            assert found == ([expected] if expected else []), (protocol, port)


def test_indices_never_meet() -> None:
    """Each protocol with ports has its own 65,536 indices, each other protocol one."""
    assert index_of(6, 65535) + 1 == index_of(17, 0)
    assert index_of(17, 65535) + 1 == index_of(132, 0)
    assert index_of(132, 65535) + 1 == index_of(0, 0)
    assert index_of(1, 7) == index_of(1, 0)

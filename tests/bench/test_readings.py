"""What tools and /proc say is read as they say it, and nonsense is no figure."""

from __future__ import annotations

import pytest

from bench.dns import judge_forwarder, read_rate, render_forwarder
from bench.memory import read_memory
from bench.pairs import ENFORCED
from services.demo.state import DemoError

DNSPERF = """\
  Queries sent:         50000
  Queries completed:    50000 (100.00%)
  Queries lost:         {lost} (0.00%)

  Response codes:       NOERROR 50000 ({share}%)
  Run time (s):         1.000000
  Queries per second:   49999.500000
"""


def test_a_rate_counts_if_the_answers_are_of_use() -> None:
    """A resolver that refuses is fast as well."""
    assert read_rate(DNSPERF.format(lost=0, share="100.00")) == 49999.5
    with pytest.raises(DemoError, match="no figures of use"):
        read_rate(DNSPERF.format(lost=0, share="50.00"))


def test_the_forwarder_must_be_slower() -> None:
    """Both rates are printed; a forwarder that keeps up with us is a bound missed."""
    assert judge_forwarder({ENFORCED: [100.0] * 3, "forwarder": [60.0] * 3}, "").met
    row = judge_forwarder({ENFORCED: [100.0] * 3, "forwarder": [101.0] * 3}, "as configured")
    assert not row.met
    assert "ours 100 q/s, the forwarder's 101 q/s; as configured" in row.spread


def test_the_forwarder_has_a_listener_for_every_thread() -> None:
    """And as many sockets towards the resolver."""
    text = render_forwarder(3)
    assert text.count("reusePort=true") == 3
    assert "sockets=3" in text


def test_memory_is_read_in_megabytes() -> None:
    """Kilobytes of the kernel's are 1,024 bytes, ours are millions."""
    rollup = "00400000-7ffd ---p 00000000 00:00 0 [rollup]\nRss:   100000 kB\nPss:    50000 kB\nPss_Dirty: 9 kB\n"
    assert read_memory(rollup, "VmPeak: 9 kB\nVmHWM:  200000 kB\n") == {"Pss": 51.2, "Rss": 102.4, "Peak": 204.8}

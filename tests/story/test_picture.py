"""The picture in the README is drawn from a kept recording, and the recording tells one whole story twice."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

from services.story.__main__ import PICTURE, RECORDING
from services.story.axis import Axis
from services.story.picture import draw, format_millis
from services.story.recording import Scene, find_process, read_recording
from services.story.spans import Span

KEPT = read_recording(RECORDING)
DENIED, ALLOWED = KEPT.scenes


def links_of(scene: Scene) -> dict[str, Span]:
    """Name -> span at the other end of the verdict's links."""
    known = scene.by_id
    return {known[one].name: known[one] for _, one in known[scene.verdict].links}


def test_the_picture_is_what_the_recording_draws() -> None:
    """Byte for byte: who changes one draws the other again (``python -m services.story draw``)."""
    assert draw(KEPT) == PICTURE.read_text()


def test_every_span_has_a_bar_and_every_link_and_cause_an_arrow() -> None:
    """Nothing that was recorded is left out."""
    drawn = ElementTree.fromstring(PICTURE.read_text())
    kinds = [one.tag.partition("}")[2] for one in drawn.iter()]
    arrows = [one for one in drawn.iter() if "marker-end" in one.attrib]
    causes = [
        span
        for scene in KEPT.scenes
        for span in scene.spans
        if span.parent and find_process(scene.by_id[span.parent]) != find_process(span)
    ]
    links = [link for scene in KEPT.scenes for span in scene.spans for link in span.links]
    spans = [span for scene in KEPT.scenes for span in scene.spans]
    assert len(arrows) == len(causes) + len(links) + 2  # two in the legend
    lanes = sum(len({find_process(span) for span in scene.spans}) for scene in KEPT.scenes)
    assert kinds.count("rect") == len(spans) + lanes + 2 * len(KEPT.scenes) + 4 + 1  # cards, legend, paper


def test_the_denial_leads_to_the_change_and_to_the_answer() -> None:
    """The application of the very revision on the very node, and what the pod was told before it was denied."""
    verdict, linked = DENIED.by_id[DENIED.verdict], links_of(DENIED)
    assert verdict.attributes["yett.verdict"] == "deny"
    assert linked["apply revision"].attributes["yett.revision"] == verdict.attributes["yett.revision"]
    assert linked["apply revision"].attributes["k8s.node.name"] == verdict.attributes["k8s.node.name"]
    assert linked["dns answer"].attributes["dns.question.name"] == verdict.attributes["dns.question.name"]


def test_the_allowed_name_leads_through_three_processes_on_two_nodes() -> None:
    """Verdict, lesson here, publication there, answer there."""
    learned = links_of(ALLOWED)["learn name"]
    published = ALLOWED.by_id[learned.parent]
    answered = ALLOWED.by_id[published.parent]
    assert [find_process(one) for one in (ALLOWED.by_id[ALLOWED.verdict], learned)] == ["nodeagent node-a"] * 2
    assert find_process(published) == find_process(answered) == f"dnsrecorder {answered.attributes['k8s.node.name']}"
    assert answered.attributes["k8s.node.name"] != "node-a"
    assert {find_process(one).split()[0] for one in ALLOWED.spans} == {"controller", "dnsrecorder", "nodeagent"}


def test_later_is_never_further_left_and_all_is_on_the_page() -> None:
    """Whatever was cut out between."""
    for scene in KEPT.scenes:
        axis = Axis(scene.spans, 100.0, 1000.0)
        moments = sorted({nanos for span in scene.spans for nanos in (span.start_nanos, span.end_nanos)})
        places = [axis.place(nanos) for nanos in moments]
        assert places == sorted(places) and places[0] == 100.0 and round(places[-1], 6) == 1000.0


def test_times_are_said_as_exactly_as_they_matter() -> None:
    """Three figures or so."""
    assert [format_millis(nanos) for nanos in (430_000, 5_590_000, 169_000_000, 1_267_000_000)] == [
        *("0.43 ms", "5.6 ms", "169 ms", "1.27 s")
    ]

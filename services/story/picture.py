"""A recording as SVG: a lane a process, a row a span, a colour a trace. Pure: one recording, one text.

Solid arrows are causes across processes (the parent's context came in a message's headers), dashed ones are links.
"""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from services.story.axis import CUT_WIDTH, Axis
from services.story.recording import Recording, Scene, find_process
from services.story.spans import Span

WIDTH, MARGIN = 1120.0, 24.0
LANES, TRACK = MARGIN + 178.0, WIDTH - MARGIN - 14.0
ROW, BAR, LANE_GAP = 33.0, 9.0, 9.0
LETTER = 6.0
"""Width of a letter of a label, about."""
CHANGE, ANSWER, DENY, ALLOW = "#2563c9", "#a15c00", "#c8232c", "#1a7f37"
INK, DIM, LINE, PAPER, LANE = "#1f2328", "#59636e", "#c9d1d9", "#ffffff", "#f6f8fa"
STYLE = (
    "text{font:12px system-ui,-apple-system,'Segoe UI',Helvetica,Arial,sans-serif;fill:" + INK + "}"
    ".title{font-size:17px;font-weight:600}.dim{fill:" + DIM + "}.small{font-size:11px}"
    ".code{font:12px ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace}"
    ".halo{paint-order:stroke;stroke:" + LANE + ";stroke-width:3px;stroke-linejoin:round}"
)
LEGEND = (
    (CHANGE, "a policy change: one trace"),
    (ANSWER, "a DNS answer: one trace"),
    (DENY, "denied"),
    (ALLOW, "allowed"),
)


def draw(recording: Recording) -> str:
    """The whole picture."""
    parts, top = [], MARGIN
    for number, scene in enumerate(recording.scenes, 1):
        drawing = _SceneDrawing(scene, number, top)
        parts += drawing.draw()
        top = drawing.bottom + 30
    parts += _draw_legend(recording, top)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH:g}" height="{top + 46:g}" '
    head += f'viewBox="0 0 {WIDTH:g} {top + 46:g}" role="img">'
    title = "<title>" + escape("; ".join(scene.title for scene in recording.scenes)) + "</title>"
    paper = f'<rect width="100%" height="100%" fill="{PAPER}"/>'
    return "\n".join([head, title, f"<style>{STYLE}</style>", _markers(), paper, *parts, "</svg>"]) + "\n"


class _SceneDrawing:
    """One scene, from ``top`` down to ``bottom``."""

    def __init__(self, scene: Scene, number: int, top: float) -> None:
        self._scene = scene
        self._number = number
        self._top = top
        self._verdict = scene.by_id[scene.verdict]
        self._axis = Axis(scene.spans, LANES + 12, TRACK)
        self._lanes: dict[str, list[Span]] = {}
        for process in sorted({find_process(span) for span in scene.spans}, key=self._rank):
            self._lanes[process] = [span for span in scene.spans if find_process(span) == process]
        self._row: dict[str, float] = {}
        self.bottom = top

    def _rank(self, process: str) -> tuple[bool, str]:
        """From cause to effect: controller, recorders, agents, and last the one whose verdict it is."""
        return process == find_process(self._verdict), process

    def draw(self) -> list[str]:
        parts = [text(MARGIN, self._top + 15, f"{self._number}. {self._scene.title}", "title")]
        for place, line in enumerate(self._scene.did):
            parts.append(text(MARGIN + 2, self._top + 38 + 18 * place, f"$ {line}", "code dim"))
        self.bottom = self._top + 38 + 18 * len(self._scene.did) + 14
        lanes_top = self.bottom
        lanes = [part for process, spans in self._lanes.items() for part in self._draw_lane(process, spans)]
        cuts = list(self._draw_cuts(lanes_top))
        arrows = [arrow for span in self._scene.spans for arrow in self._draw_arrows(span)]
        bars = [part for span in self._scene.spans for part in self._draw_span(span)]
        return [*parts, *lanes, *cuts, *arrows, *bars, *self._draw_card()]

    def _draw_lane(self, process: str, spans: list[Span]) -> Iterator[str]:
        height = ROW * len(spans) + 8
        yield rect(MARGIN, self.bottom, WIDTH - 2 * MARGIN, height, LANE, 'rx="6"')
        service, _, node = process.partition(" ")
        yield text(MARGIN + 12, self.bottom + 20, service, "")
        yield text(MARGIN + 12, self.bottom + 35, node, "small dim")
        for place, span in enumerate(spans):
            self._row[span.id] = self.bottom + 4 + ROW * place
        self.bottom += height + LANE_GAP

    def _draw_cuts(self, top: float) -> Iterator[str]:
        """What lies between two stretches, and how long that was."""
        for before, after in zip(self._axis.stretches, self._axis.stretches[1:], strict=False):
            middle = before.left + before.width + CUT_WIDTH / 2
            yield line(middle, top - 4, middle, self.bottom - LANE_GAP + 4, f'stroke="{LINE}" stroke-dasharray="2 4"')
            yield text(middle, top - 9, format_millis(after.start - before.end) + " later", "small dim", "middle")

    def _draw_span(self, span: Span) -> Iterator[str]:
        left, right = self._axis.place(span.start_nanos), self._axis.place(span.end_nanos)
        top = self._row[span.id]
        yield rect(left, top + 18, max(3.0, right - left), BAR, self._colour(span), 'rx="2"')
        label, times = describe(span), self._describe_times(span)
        words = f'{escape(label)} <tspan class="small dim">{escape(times)}</tspan>'
        x, y, anchor = left, top + 13, "start"
        if span is self._verdict:  # links leave it upwards
            x, y, anchor = left - 8, top + 26, "end"
        elif left + LETTER * (len(label) + len(times) + 2) > TRACK:
            x, anchor = max(right, left + 3), "end"
        yield f'<text x="{x:.1f}" y="{y:.1f}" class="halo" text-anchor="{anchor}">{words}</text>'

    def _describe_times(self, span: Span) -> str:
        lasted = format_millis(span.end_nanos - span.start_nanos)
        return f"at {format_millis(span.start_nanos - self._axis.zero)}, {lasted}"

    def _draw_arrows(self, span: Span) -> Iterator[str]:
        parent = self._scene.by_id.get(span.parent)
        if parent is not None and find_process(parent) != find_process(span):
            end = self._axis.place(span.start_nanos)
            start = min(self._axis.place(parent.end_nanos), end - 7)
            yield arrow(start, self._middle(parent), start, end, self._middle(span), self._colour(span))
        for place, (_, linked) in enumerate(span.links):
            other = self._scene.by_id[linked]
            start = self._axis.place(span.start_nanos) + 1 + 4 * place
            end = max(self._axis.place(other.end_nanos), self._axis.place(other.start_nanos) + 3) + 2
            yield arrow(start, self._middle(span), start, end, self._middle(other), self._colour(other), is_link=True)

    def _middle(self, span: Span) -> float:
        return self._row[span.id] + 18 + BAR / 2

    def _colour(self, span: Span) -> str:
        if span.name == "verdict":
            return DENY if span.attributes["yett.verdict"] == "deny" else ALLOW
        return ANSWER if "dns.question.name" in span.attributes else CHANGE

    def _draw_card(self) -> Iterator[str]:
        """What the verdict's span says."""
        lines = describe_verdict(self._verdict)
        height = 12 + 19.0 * len(lines)
        yield rect(MARGIN, self.bottom + 4, WIDTH - 2 * MARGIN, height, PAPER, f'rx="6" stroke="{LINE}"')
        yield rect(MARGIN, self.bottom + 4, 5, height, self._colour(self._verdict), 'rx="2"')
        for place, words in enumerate(lines):
            yield text(MARGIN + 16, self.bottom + 24 + 19 * place, words, "code")
        self.bottom += height + 4


def describe(span: Span) -> str:
    """Its name, and what tells it from others like it."""
    attributes = span.attributes
    if span.name == "objects changed":
        return f"{span.name}: {', '.join(attributes['yett.objects'])}"
    if "yett.rows" in attributes:
        return f"{span.name}: {attributes['yett.rows']} rows"
    if span.name == "dns answer":
        return f"{span.name}: {attributes['dns.question.name']} is {', '.join(attributes['dns.answers'])}"
    if span.name in ("publish revision", "apply revision"):
        return f"{span.name} {attributes['yett.revision']}"
    return f"{span.name}: {attributes['yett.verdict']}" if span.name == "verdict" else span.name


def describe_verdict(span: Span) -> list[str]:
    """Who, to whom; why, by whom; by whose answer, where another node's counted."""
    one = span.attributes
    pod, source = f"{one['k8s.namespace.name']}/{one['k8s.pod.name']}", f"{one['source.address']}:{one['source.port']}"
    peer = f"{one['destination.address']}:{one['destination.port']}"
    name = f" ({one['dns.question.name']})" if "dns.question.name" in one else ""
    rule = f", rule {one['yett.rule']}" if one.get("yett.rule") else ""
    why = f"{one['yett.reason']} by {one['yett.policy.kind']} {one['yett.policy']}{rule}"
    lines = [
        f"{one['yett.verdict'].upper()} {pod} {source} -> {peer}{name} {one['network.transport']}",
        f"{why}, tier {one['yett.tier']}, revision {one['yett.revision']}",
    ]
    return [*lines, f"the name was learned by {one['yett.learned_by']}"] if "yett.learned_by" in one else lines


def format_millis(nanos: int) -> str:
    """``12 ms``, ``0.43 ms``, ``1.27 s``."""
    millis = nanos / 1e6
    if millis >= 1000:
        return f"{millis / 1000:.2f} s"
    return f"{millis:.0f} ms" if millis >= 100 else f"{millis:.1f} ms" if millis >= 1 else f"{millis:.2f} ms"


def _draw_legend(recording: Recording, top: float) -> Iterator[str]:
    x = MARGIN
    for colour, words in LEGEND:
        yield rect(x, top, 12, BAR, colour, 'rx="2"')
        yield text(x + 18, top + BAR, words, "small dim")
        x += 34 + LETTER * len(words)
    for words, is_link in (("caused by, through NATS headers", False), ("span link", True)):
        yield arrow(x, top + 4, x, x + 26, top + 4, DIM, is_link=is_link)
        yield text(x + 34, top + BAR, words, "small dim")
        x += 50 + LETTER * len(words)
    made = f"Spans as an OTLP receiver got them, recorded {recording.recorded} by `make story`. "
    yield text(MARGIN, top + 30, made + "Time is linear between cuts; each row says when and how long.", "small dim")


def _markers() -> str:
    heads = [
        f'<marker id="{_marker(colour)}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
        f'orient="auto"><path d="M0 0L8 4L0 8z" fill="{colour}"/></marker>'
        for colour in (CHANGE, ANSWER, DIM)
    ]
    return "<defs>" + "".join(heads) + "</defs>"


def _marker(colour: str) -> str:
    return f"head-{colour[1:]}"


def arrow(start: float, y1: float, turn: float, end: float, y2: float, colour: str, *, is_link: bool = False) -> str:
    """From (start, y1) along x = ``turn`` to (end, y2)."""
    dashes = ' stroke-dasharray="5 4"' if is_link else ""
    path = f"M{start:.1f} {y1:.1f}V{y2:.1f}H{end:.1f}"
    head = f'marker-end="url(#{_marker(colour)})"'
    return f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.4"{dashes} {head}/>'


def text(x: float, y: float, words: str, css: str, anchor: str = "start") -> str:
    """One line of it."""
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{css}" text-anchor="{anchor}">{escape(words)}</text>'


def rect(x: float, y: float, width: float, height: float, fill: str, more: str = "") -> str:
    """A filled box."""
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{fill}" {more}/>'


def line(x1: float, y1: float, x2: float, y2: float, more: str) -> str:
    """A stroke."""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" {more}/>'

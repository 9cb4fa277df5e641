"""A folder of manifests: what appears is taken at once, the unreadable changes nothing, what vanishes is doubted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from services.controller.manifests import Folder, ManifestEvent, load, read_documents, watch

DEADLINE_SECONDS = 5.0
APP = "apiVersion: v1\nkind: Namespace\nmetadata: {name: app}\n"
DB = APP.replace("app", "db")


def gone(events: list[ManifestEvent]) -> list[str]:
    return [event.gone[2] for event in events if event.gone is not None]


def given(events: list[ManifestEvent]) -> list[str]:
    return [event.obj["metadata"]["name"] for event in events if event.obj is not None]


def test_a_file_may_hold_many_documents() -> None:
    """Documents, empty ones and ``List`` kinds unfold into objects."""
    text = f"---\n{APP}---\n---\napiVersion: v1\nkind: List\nitems: [{{kind: Pod}}]\n"
    documents, problems = read_documents("x.yaml", text)
    assert documents is not None and [each["kind"] for each in documents] == ["Namespace", "Pod"] and not problems


def test_json_is_read_too() -> None:
    """A JSON object is a manifest."""
    documents, _ = read_documents("x.json", '{"apiVersion": "v1", "kind": "Pod"}')
    assert documents == [{"apiVersion": "v1", "kind": "Pod"}]


def test_bad_yaml_is_a_problem_with_its_line() -> None:
    """What is no YAML names file and line."""
    documents, (problem,) = read_documents("x.yaml", "a: 1\nb: [1\nc: 2\n")
    assert documents is None and (problem.file, problem.path, problem.severity) == ("x.yaml", "line 3", "error")


def test_a_key_given_twice_is_refused() -> None:
    """Of two equal keys one would be lost in silence."""
    documents, (problem,) = read_documents("x.yaml", "spec: {}\nkind: Pod\nspec: {a: 1}\n")
    assert documents is None and "twice" in problem.message and problem.path == "line 3"


def test_a_broken_file_keeps_what_it_last_gave() -> None:
    """A malformed version is a problem and removes nothing; the next good one ends the problem."""
    folder = Folder()
    assert given(folder.read("x.yaml", APP)) == ["app"]
    (event,) = folder.read("x.yaml", "a: [")
    assert event.problems and event.problems[0].file == "x.yaml"
    (event,) = folder.read("x.yaml", APP)
    assert event.problems == ()


def test_only_what_changed_is_an_event() -> None:
    """An equal version of a file is silent, a changed object is one event, a lost one is gone."""
    folder = Folder()
    folder.read("x.yaml", f"{APP}---\n{DB}")
    assert folder.read("x.yaml", f"{APP}---\n{DB}") == []
    assert gone(folder.read("x.yaml", DB)) == ["app"]
    assert gone(folder.read("x.yaml", None)) == ["db"]


def test_an_object_in_two_files_outlives_one_of_them() -> None:
    """Where one file loses an object that another one holds, the other one's version counts again; both are named."""
    folder = Folder()
    folder.read("a.yaml", APP)
    events = folder.read("b.yaml", APP)
    assert any(event.problems and "a.yaml" in event.problems[0].message for event in events)
    events = folder.read("b.yaml", None)
    assert gone(events) == [] and given(events) == ["app"]


def test_nothing_is_gone_before_it_is_quiet() -> None:
    """A first look at a truncated file takes nothing away; the look after it has been quiet does."""
    folder = Folder()
    folder.read("x.yaml", APP)
    assert gone(folder.read("x.yaml", "", is_quiet=False)) == []
    assert folder.has_vanished("x.yaml", "")
    assert gone(folder.read("x.yaml", "", is_quiet=True)) == ["app"]


def test_a_document_without_a_name_is_the_files_problem() -> None:
    """What is no object is reported with its file; its neighbours are taken."""
    events = Folder().read("x.yaml", f"just text\n---\n{APP}")
    assert given(events) == ["app"] and any(event.problems for event in events)


def test_load_reads_folders_in_order_and_nothing_hidden(tmp_path: Path) -> None:
    """YAML and JSON below the folder are read, hidden files and other suffixes are not."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.yml").write_text(DB)
    (tmp_path / "a.yaml").write_text(APP)
    (tmp_path / ".a.yaml.swp.yaml").write_text("a: [")
    (tmp_path / "notes.txt").write_text("a: [")
    assert [(event.file, *given([event])) for event in load(tmp_path)] == [("a.yaml", "app"), ("sub/b.yml", "db")]


def test_bytes_that_are_no_text_are_a_problem(tmp_path: Path) -> None:
    """A binary file is refused like bad YAML."""
    (tmp_path / "a.yaml").write_bytes(b"\xff\xfe\x00")
    (event,) = load(tmp_path)
    assert event.problems


def run_watching(folder: Path, script: Callable[[AsyncIterator[list[ManifestEvent]]], Awaitable[None]]) -> None:
    async def main() -> None:
        stop = asyncio.Event()
        events = watch(folder, stop=stop)
        try:
            async with asyncio.timeout(DEADLINE_SECONDS):
                await script(events)
        finally:
            stop.set()
            await events.aclose()  # type: ignore[attr-defined]  # an async generator behind its interface

    asyncio.run(main())


def test_watch_gives_what_is_there_and_then_every_change(tmp_path: Path) -> None:
    """The first batch is the folder; then writes, renames over, and removals come as they happen."""
    (tmp_path / "a.yaml").write_text(APP)

    async def script(events: AsyncIterator[list[ManifestEvent]]) -> None:
        assert given(await anext(events)) == ["app"]
        (tmp_path / "b.yaml").write_text(DB)
        assert given(await anext(events)) == ["db"]
        (tmp_path / "new").write_text(APP.replace("{name: app}", "{name: app, labels: {a: b}}"))
        (tmp_path / "new").rename(tmp_path / "a.yaml")
        batch = await anext(events)
        assert given(batch) == ["app"] and gone(batch) == []
        (tmp_path / "b.yaml").unlink()
        assert gone(await anext(events)) == ["db"]

    run_watching(tmp_path, script)


def test_a_rewrite_in_place_never_takes_an_object_away(tmp_path: Path) -> None:
    """A file that is truncated and written again a few milliseconds later loses nothing in between."""
    (tmp_path / "a.yaml").write_text(APP)

    async def script(events: AsyncIterator[list[ManifestEvent]]) -> None:
        await anext(events)
        for round_ in range(20):
            with (tmp_path / "a.yaml").open("w") as file:
                file.flush()
                await asyncio.sleep(0.003)
                file.write(APP.replace("{name: app}", f"{{name: app, labels: {{a: v{round_}}}}}"))
            seen: list[ManifestEvent] = []
            while not given(seen):
                seen += await anext(events)
            assert gone(seen) == []

    run_watching(tmp_path, script)


def test_an_event_arrives_within_milliseconds(tmp_path: Path) -> None:
    """From the write to the event the median is far below the 20 ms that a verdict may take."""
    took = []

    async def script(events: AsyncIterator[list[ManifestEvent]]) -> None:
        await anext(events)
        for round_ in range(15):
            await asyncio.sleep(0.01)
            begin = time.perf_counter()
            (tmp_path / "a.yaml").write_text(APP.replace("{name: app}", f"{{name: app, labels: {{a: v{round_}}}}}"))
            seen: list[ManifestEvent] = []
            while not given(seen):
                seen += await anext(events)
            took.append(time.perf_counter() - begin)

    run_watching(tmp_path, script)
    assert sorted(took)[len(took) // 2] < 0.02


def test_json_is_read_as_yaml_would() -> None:
    """A file of JSON gives the same documents, and the same complaint about a key that stands twice."""
    text = (
        '{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "app", "labels": {"n": "1", "u": "\\u00e9"}}}'
    )
    assert read_documents("a.json", text) == read_documents("a.yaml", text)
    assert read_documents("a.json", "null")[0] == []
    twice = '{"kind": "Namespace", "kind": "Pod"}'
    (said,), (expected,) = read_documents("a.json", twice)[1], read_documents("a.yaml", twice)[1]
    assert said.message == expected.message

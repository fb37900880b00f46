"""The report's files: what they hold, how they are paged and sampled, what they refuse."""

from __future__ import annotations

import base64
import json
import re
from hashlib import sha256
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from farm.errors import InvalidParameter
from farm.schemas import JobResult, dump_line
from farm.storage.local import LocalStore
from producer.report import write_report
from producer.report.command import COMMAND
from producer.report.pages import PAGE
from producer.report.rows import row
from producer.report.shell import data_block
from producer.report.source import Pictures, read_results, sampled
from tests.browser.runs import catalogue

NO_STORE = Pictures(lambda: None)


@pytest.fixture
def results(tmp_path: Path) -> list[JobResult]:
    return list(catalogue(tmp_path / "pictures", 12, side=48))


def blocks(path: Path) -> list[object]:
    found = re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', path.read_text("utf-8"), re.S)
    return [json.loads(block) for block in found]


def test_the_policy_names_the_only_style_and_script_by_their_hashes(tmp_path: Path, results: list[JobResult]) -> None:
    text = write_report(tmp_path / "r.html", results, title="R", pictures=NO_STORE).path.read_text("utf-8")
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1]
    assert policy.startswith("default-src 'none'; img-src data:;")
    for tag in ("style", "script"):
        (inline,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.S)
        assert f"sha256-{base64.b64encode(sha256(inline.encode()).digest()).decode()}" in policy
        assert "innerHTML" not in inline and "url(" not in inline and "@import" not in inline and "fetch(" not in inline
    assert not re.search(r"\son\w+=|\sstyle=|<link|<iframe|<base", text)


def test_a_page_has_a_row_and_its_pictures_for_every_result(tmp_path: Path, results: list[JobResult]) -> None:
    written = write_report(tmp_path / "r.html", results, title="R", pictures=NO_STORE)
    data, *pictures = blocks(written.path)
    assert [r["id"] for r in data["rows"]] == [r.custom_id for r in results]
    assert [len(p) for p in pictures] == [1 + len(r.outputs) for r in results]
    assert all(one[0].startswith("data:image/webp;base64,") for p in pictures for one in p)
    assert (written.pages, written.results, written.missing, written.bytes) == (1, 12, 0, written.path.stat().st_size)
    assert data["rows"][0]["before"] == f"./pictures/{results[0].image.rsplit('/', 1)[1]}"


def test_pictures_that_are_not_here_leave_a_gap_that_is_counted(tmp_path: Path, results: list[JobResult]) -> None:
    gone = results[0].model_copy(update={"image": "s3://elsewhere/x.png"})
    written = write_report(tmp_path / "r.html", [gone], title="R", pictures=NO_STORE)
    assert written.missing == 1
    assert blocks(written.path)[1][0] is None and blocks(written.path)[0]["rows"][0]["before"] is None


def test_pictures_elsewhere_come_from_the_store(tmp_path: Path) -> None:
    class Bucket:
        def get(self, uri: str, *, max_bytes: int):
            assert uri == "s3://bucket/x.png" and max_bytes > 10**6
            return LocalStore(tmp_path).get(f"file://{tmp_path}/x.png", max_bytes=max_bytes)

    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    asked = []
    pictures = Pictures(lambda: asked.append(1) or Bucket())
    assert pictures("s3://bucket/x.png") == pictures("s3://bucket/x.png") == (tmp_path / "x.png").read_bytes()
    assert pictures("https://evil.example/x.png") is None and len(asked) == 1


def test_more_than_a_page_gives_pages_and_an_index(tmp_path: Path, results: list[JobResult]) -> None:
    written = write_report(tmp_path / "run.html", iter(results), title="R", pictures=NO_STORE, page_size=5)
    names = sorted(path.name for path in tmp_path.glob("*.html"))
    assert names == ["run-001.html", "run-002.html", "run-003.html", "run.html"]
    assert (written.pages, written.results) == (3, 12)
    index = written.path.read_text("utf-8")
    assert re.findall(r'href="\./(run-\d+\.html)"', index) == names[:3]
    runs = re.findall(r'data-run="([0-9a-f]{16})"', index)
    assert runs == [blocks(tmp_path / name)[0]["run"] for name in names[:3]] and len(set(runs)) == 3
    assert 'href="./run.html"' in (tmp_path / "run-002.html").read_text("utf-8")


def test_a_full_page_and_not_one_more_needs_no_index(tmp_path: Path, results: list[JobResult]) -> None:
    assert write_report(tmp_path, results, title="R", pictures=NO_STORE, page_size=12).pages == 1
    assert (tmp_path / "index.html").is_file() and PAGE == 1000


def test_an_empty_run_gives_a_page(tmp_path: Path) -> None:
    assert write_report(tmp_path / "r.html", [], title="R", pictures=NO_STORE).results == 0


def test_only_a_report_is_replaced_and_only_by_a_whole_one(tmp_path: Path, results: list[JobResult]) -> None:
    other = tmp_path / "precious.html"
    other.write_text("<p>mine")
    with pytest.raises(InvalidParameter, match="no report"):
        write_report(other, results, title="R", pictures=NO_STORE)
    assert other.read_text() == "<p>mine"
    path = write_report(tmp_path / "r.html", results[:1], title="Old", pictures=NO_STORE).path

    def broken(uri: str) -> str:
        raise RuntimeError("cut off")

    with pytest.raises(RuntimeError):
        write_report(path, results, title="New", pictures=broken)
    assert "<title>Old</title>" in path.read_text("utf-8")
    assert [p.name for p in tmp_path.glob(".*")] == []
    write_report(path, results, title="New", pictures=NO_STORE)
    assert "<title>New</title>" in path.read_text("utf-8")


def test_data_cannot_end_its_element() -> None:
    block = data_block({"x": "</script><!--<script>"})
    assert block.count("<") == 2 and json.loads(block[block.index(">") + 1 : block.rindex("<")])["x"].startswith("</")


def test_a_row_tells_the_worst_of_the_outputs(results: list[JobResult]) -> None:
    good, bad = results[1].outputs[0], results[3].outputs[0]
    made = row(results[1].model_copy(update={"outputs": (good, bad)}), lambda uri: None)
    assert made["score"] == bad.scores.worst and made["scores"]["seam"] == bad.scores.seam
    bare = row(results[1].model_copy(update={"outputs": (), "receipt": None}), lambda uri: None)
    assert (bare["score"], bare["outside"], bare["size"]) == (None, None, None)


def test_results_are_read_line_by_line_and_a_bad_line_is_named(tmp_path: Path, results: list[JobResult]) -> None:
    path = tmp_path / "results.ndjson"
    later = json.loads(dump_line(results[0])) | {"gpu_cents": 3}  # of a later release
    path.write_bytes(json.dumps(later).encode() + b"\n\n" + dump_line(results[1]))
    with path.open("rb") as file:
        assert list(read_results(file, "x")) == results[:2]
    for bad in (b"{", b"[]", b'{"custom_id": "x"}', b"\xff", b'"' + b"x" * 5 * 1024**2):
        path.write_bytes(dump_line(results[0]) + bad + b"\n")
        with path.open("rb") as file, pytest.raises(InvalidParameter, match=r"x, line 2: "):
            list(read_results(file, "x"))


def test_a_sample_is_even_ordered_and_repeatable(results: list[JobResult]) -> None:
    assert sampled(results, 20, seed=1) == results
    assert sampled(iter(results), 5, seed=1) == sampled(results, 5, seed=1) != sampled(results, 5, seed=2)
    times = dict.fromkeys((r.job_id for r in results), 0)
    for seed in range(600):
        sample = sampled(results, 3, seed=seed)
        assert sample == sorted(sample, key=lambda r: r.job_id)
        for result in sample:
            times[result.job_id] += 1
    assert all(100 < count < 200 for count in times.values())  # 150 expected, 11 the standard deviation


def test_the_command_writes_and_says_so(tmp_path: Path, results: list[JobResult], monkeypatch) -> None:
    monkeypatch.delenv("FARM_STORE", raising=False)
    source = tmp_path / "results.ndjson"
    source.write_bytes(b"".join(map(dump_line, results)))
    run = CliRunner().invoke(COMMAND, [str(source), "--out", str(tmp_path / "out"), "--sample", "4", "--json"])
    assert run.exit_code == 0, run.output
    said = json.loads(run.output)
    assert said["path"] == str(tmp_path / "out" / "index.html") and said["results"] == 4 and said["pages"] == 1
    assert len(blocks(Path(said["path"]))[0]["rows"]) == 4
    piped = CliRunner().invoke(COMMAND, ["-", "--out", str(tmp_path / "r.html")], input=source.read_bytes())
    assert piped.exit_code == 0 and "12 results, 1 page" in piped.output
    absent = CliRunner().invoke(COMMAND, [str(tmp_path / "absent.ndjson")])
    assert isinstance(absent.exception, InvalidParameter)

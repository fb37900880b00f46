"""The benchmarks: each runs once at toy size, gates and tables included, and no ratio is printed of unequal work."""

import json

import pytest
import torch

from tests.benchmarks import (
    farm_run,
    formats,
    limit,
    mixed_batch,
    new_lora,
    new_lora_jobs,
    options,
    replay,
    report,
    savings,
    soak,
    statistic,
    tax,
)
from tests.benchmarks.__main__ import CPU, GPU, Result, document
from tests.benchmarks.ours import Ours
from tests.benchmarks.topologies import Topology
from tests.benchmarks.work import Job, make_lora

PROGRAMS = (new_lora, new_lora_jobs, tax, soak, formats, mixed_batch, replay, limit, savings)
# farm_run's processes and savings' compiler take half a minute each; what the others walk, the engine's tests and the
# gate below walk, too.
LONG = (farm_run, new_lora, new_lora_jobs, savings, soak)
RUNS = [pytest.param(one, marks=pytest.mark.full) if one in LONG else one for one in (*PROGRAMS, farm_run)]


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def toy(module) -> options.Options:
    return options.read(module.DEFAULTS, None, ["--quick", "--threads", "1"])[0]


@pytest.mark.parametrize("module", RUNS, ids=lambda module: module.__name__.rpartition(".")[2])
def test_it_runs_at_toy_size_and_its_outputs_are_equal(module):
    made = module.run(toy(module))
    assert made.shut == []
    assert made.tables and all(table.rows for table in made.tables)
    text, data = made.markdown(), json.loads(json.dumps(made.to_json()))
    assert text.startswith(f"## {made.name}, ") and "NOT EQUAL" not in text and "none: " not in text
    assert data["claims"] == [{"wanted": one.wanted, "found": one.found, "reached": one.reached} for one in made.claims]
    if module is formats:
        assert all(claim.reached for claim in made.claims)
    else:
        assert not any(claim.reached for claim in made.claims), "a toy proves nothing"


def test_a_benchmark_whose_outputs_differ_prints_no_ratio_and_fails(monkeypatch, tmp_path, capsys):
    """The LoRA is left off on our side: whatever was gained by that is not shown."""
    paint = Ours.paint
    monkeypatch.setattr(Ours, "paint", lambda self, job, *loras: paint(self, job))
    out = tmp_path / "report.json"
    command = ["prog", "--quick", "--threads", "1", "--out", str(out)]
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(SystemExit) as ended:
        options.main(new_lora_jobs.run, new_lora_jobs.DEFAULTS, None)
    assert "had to be equal were not" in str(ended.value.code)
    rows = json.loads(out.read_text())["tables"][0]["rows"]
    gained = {row[0]: row[3] for row in rows if row[0] in {peer.name for peer in new_lora_jobs.PEERS}}
    assert len(gained) == 4 and all(cell.startswith("none: the outputs differ by") for cell in gained.values())
    assert "×" not in capsys.readouterr().out.partition("Swaps and steps")[0]


def test_a_gate_opens_for_equal_outputs_of_a_lora_that_acts():
    ours = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    gate = report.Gate.of(ours, ours * (1 + 1e-6), torch.float32, ours * 2)
    assert gate.open and gate.ratio(2.5) == "2.50×"
    apart = report.Gate.of(ours, ours * 1.001, torch.float32)
    assert not apart.open and apart.ratio(2.5).startswith("none: the outputs differ by 1.0e-03")
    idle = report.Gate.of(ours, ours, torch.float32, ours)
    assert not idle.open and "the LoRA changes the output" in idle.ratio(2.5)
    one_sided = report.Gate.of(ours, ours * 1.005, torch.float16, ours)
    assert one_sided.error <= one_sided.tolerance and not one_sided.open, "ours is what the peer's is without the LoRA"
    assert not report.Gate.of(ours, ours * torch.nan, torch.float32).open
    assert not report.Gate.of(ours, ours[:, :2], torch.float32).open
    assert report.worst([gate, apart]) is apart


def test_medians_and_their_intervals():
    found = statistic.interval([1.0, 2.0, 3.0, 4.0, 100.0])
    assert (found.median, found.count) == (3.0, 5) and 1.0 <= found.low <= 3.0 <= found.high <= 100.0
    assert found == statistic.interval([1.0, 2.0, 3.0, 4.0, 100.0])
    assert statistic.interval([7.0]).text(str) == "7.0 (once)"
    assert statistic.ratio([2.0, 40.0, 6.0], [1.0, 20.0, 3.0]).text(statistic.times) == "2.00× [2.00×, 2.00×]"
    assert statistic.difference([2.0, 5.0, 6.0], [1.0, 4.0, 3.0]).median == 1.0


def test_contenders_take_turns_and_the_warm_up_does_not_count():
    calls = []

    def contender(name):
        def run(number):
            calls.append((number, name))
            return float(number)

        return run

    found = statistic.interleaved({name: contender(name) for name in "abc"}, 3, what="", warm_up=1)
    assert found == {name: [0.0, 1.0, 2.0] for name in "abc"}
    orders = ["".join(name for number, name in calls if number == n) for n in range(-1, 3)]
    assert orders == ["cab", "abc", "bca", "cab"]


def test_our_jobs_and_loras_are_new_each_time():
    """What is counted as new must not be found in a cache."""
    given = toy(new_lora)
    with Ours(Topology("toy", 0, "cpu", torch.float32), given) as ours:
        shapes = {"mid_block.attentions.0.transformer_blocks.0.attn1.to_q": (64, 64)}
        first, second = (ours.read(make_lora(shapes, 2, seed)) for seed in (1, 2))
        assert first.fingerprint != second.fingerprint
        assert not torch.equal(ours.latents(Job(1, 1, 32), first), ours.latents(Job(1, 1, 32), second))
        assert ours.worked_seconds["denoise"] > 0 and [rows for rows, _ in ours.steps] == [2, 2]


def test_the_document_says_what_was_found_failed_and_was_not_run():
    data = {
        "name": "B1",
        "facts": {"size": "full at 128 px", "dtype": "float32"},
        "claims": [{"wanted": "fast", "found": "2×", "reached": False}],
        "shut": ["hotswap: differs"],
    }
    results = [Result("## B1\n", data, True), Result("## B4\n", {"name": "B4", "failed": "ended with 1"}, True)]
    text = document(results, CPU, [CPU[0]], gpu=False)
    for line in (
        "| B1, full at 128 px, float32 | fast | 2× | NOT reached |",
        "| B1, full at 128 px, float32 | equal outputs | hotswap: differs | FAILED |",
        "| B4 | it runs | ended with 1 | FAILED |",
        "B2, B3, B4, B5, B6, B7, B8, farm, savings: not run here.",
        "On a CUDA device (`make bench-gpu`: B1, B2, B6, B8 at 512²): not run here.",
    ):
        assert line in text
    assert {run.name for run in CPU} == {f"B{n}" for n in range(1, 9)} | {"farm", "savings"}
    assert {run.name for run in GPU} == {"B1", "B2", "B6", "B8"}


@pytest.mark.parametrize("run", [*CPU, *GPU], ids=lambda run: " ".join([run.module, *run.arguments]))
def test_the_plans_arguments_are_understood(run):
    module = next(one for one in (*PROGRAMS, farm_run) if one.__name__.endswith(f".{run.module}"))
    given, _, _ = options.read(module.DEFAULTS, None, list(run.arguments))
    assert given.side % 8 == 0 and given.device in ("cpu", "cuda")

"""`farm run`"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import click

from farm.errors import IdempotencyConflict, InputNotFound, InvalidParameter, JobFailed, OverBudget
from farm.schemas import InpaintJob
from farm.states import JobState
from producer.batch import BatchHandle
from producer.client import Client
from producer.commands.common import connected, json_option, price_of, price_option, tell, tenant_option
from producer.cost import Costs
from producer.manifest import Manifest
from producer.preflight import Examined, Preflight
from producer.progress import JobProgress
from producer.quote import Quote, Rate, rate_from_batch, rate_from_index, rate_of
from producer.run import Run, alone
from producer.run_record import RunRecord
from producer.tables import cost_table, printed

_SHOWN = 20  # bad rows that a dry run prints; --json has them all


@click.command()
@click.argument("manifest")
@click.option("--out", type=click.Path(path_type=Path), help="The run's folder; else <manifest>.run beside it.")
@click.option("--set", "fields", multiple=True, metavar="FIELD=VALUE", help="On every job, over what its row says.")
@click.option("--kind", type=click.Choice(["jsonl", "csv", "parquet"]), help="Where the file's name does not tell it.")
@click.option("--dry-run", is_flag=True, help="Check every row and quote; submit nothing.")
@click.option("--deep", is_flag=True, help="With --dry-run: download every picture and LoRA and check it as a worker.")
@click.option("--resume", is_flag=True, help="Go on with the run in --out, also past its sample.")
@click.option("--retry-failed", is_flag=True, help="Try the run's failed jobs again, and write its results anew.")
@click.option("--sample", type=click.IntRange(min=1), metavar="N", help="Render the first N rows and stop for review.")
@click.option("--max-cost", type=click.FloatRange(min=0), help="Do not begin, or pause, when it would cost more.")
@click.option(
    "--rate", type=click.FloatRange(min=0, min_open=True), metavar="SECONDS", help="Of a GPU for one picture."
)
@click.option("--rate-from", metavar="BATCH", help="Quote at the rate of this batch's results.")
@click.option("--format", "form", type=click.Choice(["farm", "openai"]), default="farm", show_default=True,
              help="openai: also write the results in the shape of an OpenAI batch.")  # fmt: skip
@click.option("--key", help="A name for the run: the same manifest under another key is rendered again.")
@click.option("--webhook", metavar="URL", help="Called when all has ended (a --sample, and the rest, each by itself).")
@price_option
@tenant_option
@json_option
def run(
    manifest: str, out: Path | None, fields: tuple[str, ...], kind: str | None, dry_run: bool, deep: bool, resume: bool,
    retry_failed: bool, sample: int | None, max_cost: float | None, rate: float | None, rate_from: str | None,
    form: str, key: str | None, webhook: str | None, price: float | None, tenant: str, as_json: bool,
) -> None:  # fmt: skip
    """Render every row of a manifest and write results.ndjson.

    MANIFEST is JSONL, CSV or Parquet, a path or s3://…. Interrupted, killed or out of budget, `--resume` finishes
    it; every row's result is written once, in the manifest's order. While it runs, other commands steer its batch,
    whose id it prints.
    """
    client = connected()
    settings = client.settings
    given = _fields(fields, tenant)
    source = Manifest(manifest, fields=given, kind=kind, settings=settings, store=client.store)
    hour = price_of(client, price)
    folder = out or _folder(source)
    if max_cost is not None and not hour:
        raise InvalidParameter("--max-cost", "needs what a GPU costs an hour: give --price, or set FARM_GPU_HOUR_PRICE")
    if webhook is not None:
        client.tenants.check_webhook(webhook, tenant=tenant)
    if dry_run:
        measured = _rate(client, _begun(client, source, folder), rate, rate_from, tenant)
        _check(client, source, hour, measured, deep=deep, as_json=as_json)
        return
    if deep:
        raise InvalidParameter("--deep", "says how a --dry-run looks at the rows; give both")
    if resume or retry_failed:
        _refuse_anew({"--sample": sample, "--key": key, "--webhook": webhook})
        RunRecord.read(folder)  # where there is none, no folder is made
    try:
        with alone(folder):
            work = Run.reopen(client, source, folder) if resume or retry_failed else None
            if max_cost is not None:  # before anything is submitted, tried again or let through
                rows = sample if work is None else None if resume else work.record.parts[-1].stop
                measured = _rate(client, work, rate, rate_from, tenant)
                if measured is None:
                    words = "no measured rate yet: --max-cost is only watched while it runs"
                    tell({"event": "warning", "message": words}, words, as_json=as_json)
                else:
                    _refuse_over_budget(source, rows, measured, hour, max_cost)
            if work is None:
                work = Run.begin(client, source, folder, tenant=tenant, key=key, sample=sample or 0, webhook=webhook)
            if retry_failed:
                count = work.retry_failed()
                words = f"failed jobs that are tried again: {count:,}"
                tell({"event": "retried", "jobs": count}, words, as_json=as_json)
            if resume:
                work.resume()
                work.let_through()
            _work(work, hour, max_cost, form, as_json=as_json)
    except KeyboardInterrupt:
        click.echo("farm: interrupted; what was submitted goes on, and --resume finishes the run.", err=True)
        sys.exit(130)


def _refuse_anew(given: dict[str, object]) -> None:
    for name, value in given.items():
        if value is not None:
            raise InvalidParameter(name, "belongs to a run that begins; this one goes on as it was begun, leave it out")


def _fields(given: tuple[str, ...], tenant: str) -> dict[str, Any]:
    """`--set`: a value is JSON where it can be read as such, else text."""
    fields: dict[str, Any] = {}
    for pair in given:
        name, equals, value = pair.partition("=")
        if not equals:
            raise InvalidParameter("--set", f"{pair!r} is not FIELD=VALUE")
        try:
            fields[name] = json.loads(value)
        except ValueError:
            fields[name] = value
    if tenant != InpaintJob.model_fields["tenant"].default:
        fields["tenant"] = tenant
    return fields


def _folder(source: Manifest) -> Path:
    if source.uri.startswith("s3://"):
        return Path(f"{source.name}.run")
    return Path(source.uri.removeprefix("file://")).with_name(f"{source.name}.run")


def _begun(client: Client, source: Manifest, folder: Path) -> Run | None:
    """The run of this very manifest in `folder`, if there is one: its sample tells more than what others render."""
    try:
        return Run.reopen(client, source, folder)
    except (InputNotFound, IdempotencyConflict):
        return None


def _rate(client: Client, run: Run | None, rate: float | None, rate_from: str | None, tenant: str) -> Rate | None:
    if rate is not None:
        return Rate(rate, "as --rate says")
    if rate_from is not None:
        return rate_from_batch(client.batch(rate_from, tenant=tenant))
    if run is not None and run.results_path.exists():
        costs = Costs.of(run.read())
        if found := rate_of(costs, f"measured over the {costs.total.images:,} pictures that this run has"):
            return found
    return rate_from_index(client, client.settings.model)


# A dry run


def _check(client: Client, source: Manifest, hour: float, rate: Rate | None, *, deep: bool, as_json: bool) -> None:
    jobs = images = bad = warned = 0
    codes: Counter[str] = Counter()
    for row in Preflight(client, deep=deep).examine(source):
        jobs += 1
        images += row.row.job.num_images_per_prompt if row.row.job else 0
        bad += not row.good
        warned += row.good and bool(row.findings)
        codes.update(finding.code for finding in row.findings if not finding.warning)
        if row.findings and (as_json or bad + warned <= _SHOWN):
            _show_row(row, as_json=as_json)
    quote = Quote(jobs, images, rate, hour)
    told = {"event": "quote", **quote.to_dict(), "bad_rows": bad, "rows_with_warnings": warned, "codes": dict(codes)}
    more = f" ({', '.join(f'{code} {count:,}' for code, count in codes.most_common())})" if codes else ""
    words = f"{jobs:,} rows checked: {jobs - bad:,} good, {bad:,} bad{more}, {warned:,} with a warning\n{quote}"
    tell(told, words, as_json=as_json)
    if bad:
        raise JobFailed(f"{bad:,} of {jobs:,} rows cannot be rendered; nothing was submitted.")


def _show_row(row: Examined, *, as_json: bool) -> None:
    name = row.row.job.custom_id if row.row.job else None
    for finding in row.findings:
        level = "warning" if finding.warning else "error"
        told = {"event": level, "row": row.row.number, "place": row.row.place, "custom_id": name,
                "code": finding.code, "message": finding.message}  # fmt: skip
        text = finding.message.removeprefix(f"{row.row.place}: ")
        who = f" {name}" if name else ""
        words = f"{row.row.place}{who}: {'warning' if finding.warning else finding.code}: {text}"
        tell(told, words, as_json=as_json)


# The run


def _refuse_over_budget(source: Manifest, rows: int | None, rate: Rate, hour: float, most: float) -> None:
    """Raises OverBudget where so many rows (None: all) cost too much at this rate."""
    jobs = images = 0
    for job in source.jobs(0, rows):
        jobs, images = jobs + 1, images + job.num_images_per_prompt
    quote = Quote(jobs, images, rate, hour)
    if (quote.cost or 0.0) > most:
        raise OverBudget(f"{quote}: more than --max-cost {most:g}; nothing more was submitted.")


def _work(run: Run, hour: float, most: float | None, form: str, *, as_json: bool) -> None:
    if not as_json:
        click.echo("submitting …", err=True)
    batches = run.batches()
    for batch in batches:
        _announce(batch, run, as_json=as_json)

    def may_spend(costs: Costs) -> bool:
        return most is None or costs.total.price(hour) < most

    total = sum(batch.jobs for batch in batches)
    with JobProgress(total, as_json=as_json, done=run.written()) as progress:
        run.finish(on_result=progress.add, on_wait=progress.show, may_spend=may_spend)
    good = run.costs.states[JobState.SUCCEEDED.value]
    results = run.results_path
    told = {"event": "done", "jobs": total, "succeeded": good, "results": str(results),
            "sample": run.sampled, **run.costs.to_dict(hour)}  # fmt: skip
    words = f"{good:,} of {total:,} succeeded; results in {results}"
    if form == "openai":
        told["openai"] = str(path := run.export_openai())
        words += f", and in {path}"
    tell(told, words, as_json=as_json)
    if not as_json:
        printed(cost_table(run.costs, hour))
        if run.sampled:
            click.echo(f"This was the sample. Look at it (`farm report {results}`), then go on with --resume.")
    if good < total:
        raise JobFailed(
            f"{total - good:,} of {total:,} did not succeed; see {results}, and try again with --retry-failed."
        )


def _announce(batch: BatchHandle, run: Run, *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"event": "batch", "batch_id": batch.id, "jobs": batch.jobs, "folder": str(run.folder)}))
    else:
        click.echo(f"batch {batch.id}: {batch.jobs:,} jobs, in {run.folder}", err=True)


COMMAND = run

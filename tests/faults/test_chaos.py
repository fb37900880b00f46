"""Faults on purpose: nothing that was accepted is lost, nothing is done twice; and plain Celery does lose jobs."""

from tests.faults.chaos import run, run_plain
from tests.faults.fleet import QUICK

SEED, SECONDS, EVERY = 1, 18.0, 1.1


def test_plain_celery_loses_jobs_under_this_nemesis(tmp_path, s3_server, s3_bucket):
    plain = run_plain(tmp_path, s3_server, s3_bucket, seed=SEED, seconds=SECONDS, every=EVERY, rate=10)
    print(plain)
    assert plain.lost > 0


def test_plain_celery_loses_none_in_peace(tmp_path, s3_server, s3_bucket):
    plain = run_plain(tmp_path, s3_server, s3_bucket, seed=SEED, seconds=0, every=EVERY, rate=10)
    assert (plain.late, plain.lost) == (0, 0)


def test_the_farm_loses_and_doubles_nothing_under_it(tmp_path, s3_server, s3_bucket):
    report = run(
        tmp_path, s3_server, s3_bucket, seed=SEED, seconds=SECONDS, every=EVERY, rate=5, drain=60, environment=QUICK
    )
    print(report.table())
    assert report.violations == []
    assert len(report.history.accepted) > 100
    assert report.history.rolled

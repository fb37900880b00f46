"""A good history passes; each made-up bad one is found, and by its own invariant."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from farm.schemas import ErrorInfo, InpaintJob, JobResult, Output
from farm.states import JobState
from tests.faults.history import (
    Accepted,
    Claimed,
    Ended,
    History,
    Invariant,
    Picture,
    Rolled,
    Spec,
    Won,
    violations,
)

ROOT = "s3://bucket/farm"


def job_of(tenant, name):
    return InpaintJob(tenant=tenant, custom_id=name, image=f"{ROOT}/in/{tenant}.png")


def result_of(job, job_id):
    uri = f"{ROOT}/outputs/{job.tenant}/b/{job.custom_id}.png"
    output = Output(uri=uri, sha256="a" * 64, bytes=9, width=8, height=8, seed=1)
    return JobResult(
        job_id=job_id,
        tenant=job.tenant,
        batch_id="b",
        custom_id=job.custom_id,
        status=JobState.SUCCEEDED,
        model=job.model,
        image=job.image,
        outputs=(output,),
        finished_at=datetime.fromtimestamp(10, UTC),
    )


def good():
    """Two tenants, a job each; the first was tried twice."""
    jobs = {"1": job_of("anna", "vase"), "2": job_of("bert", "chair")}
    results = {job_id: result_of(job, job_id) for job_id, job in jobs.items()}
    return History(
        accepted=tuple(Accepted(job_id, job.to_json()) for job_id, job in jobs.items()),
        specs=tuple(Spec(job_id, job.tenant, "b", job.to_json() + b"\n") for job_id, job in jobs.items()),
        results=tuple(Ended(job_id, jobs[job_id].tenant, "b", 0, result) for job_id, result in results.items()),
        outputs=tuple(
            Picture(result.outputs[0].uri, "a" * 64, job_id, 0, result.tenant) for job_id, result in results.items()
        ),
        rolled=(Rolled(f"{ROOT}/summaries/anna/b/00000-00000.ndjson", (results["1"],)),),
        claims=(Claimed("1", 1, 0.0, 0.1), Claimed("2", 1, 0.2, 0.3), Claimed("1", 2, 5.0, 5.1)),
        wins=tuple(Won(f"{ROOT}/results/{job_id}.0.json", 6.0) for job_id in jobs),
        left={"farm.sd15-inpaint": 0, "unacked": 0, "farm:due": 0},
    )


def test_a_good_history_is_good():
    assert violations(good()) == []


def changed_result(history, **fields):
    first = history.results[0]
    return replace(first, result=first.result.model_copy(update=fields)), *history.results[1:]


def bad_histories():
    """Name → what is done to the good history, and the invariant that must be named."""
    history = good()
    first_spec, first_result, first_picture = history.specs[0], history.results[0], history.outputs[0]
    failed = {"status": JobState.FAILED, "error": ErrorInfo(code="StoreUnavailable", message="503")}
    return {
        "an accepted spec is gone": (replace(history, specs=history.specs[1:], results=()), Invariant.KEPT),
        "an accepted spec has changed": (
            replace(history, specs=(replace(first_spec, line=job_of("anna", "cup").to_json()), *history.specs[1:])),
            Invariant.KEPT,
        ),
        "a spec is there twice": (replace(history, specs=(first_spec, *history.specs)), Invariant.KEPT),
        "a job has no result": (replace(history, results=history.results[1:]), Invariant.ENDED),
        "a spec nobody was told of has no result": (
            replace(history, accepted=history.accepted[1:], results=history.results[1:]),
            Invariant.ENDED,
        ),
        "a job has two results": (
            replace(history, results=(*history.results, replace(first_result, generation=1))),
            Invariant.ENDED,
        ),
        "a result in two places": (replace(history, results=(first_result, *history.results)), Invariant.WON_ONCE),
        "a job failed": (replace(history, results=changed_result(history, **failed)), Invariant.SUCCEEDED),
        "a result of no job": (
            replace(history, results=(*history.results, replace(first_result, job_id="3"))),
            Invariant.SPECIFIED,
        ),
        "two workers won": (replace(history, wins=(*history.wins, history.wins[0])), Invariant.WON_ONCE),
        "an attempt number came again": (
            replace(history, claims=(*history.claims, Claimed("1", 2, 7.0, 7.1))),
            Invariant.RISING,
        ),
        "an attempt number fell": (
            replace(history, claims=(*history.claims, Claimed("1", 1, 7.0, 7.1)), given_back=frozenset("1")),
            Invariant.RISING,
        ),
        "an output was overwritten": (
            replace(history, outputs=(replace(first_picture, sha256="b" * 64), *history.outputs[1:])),
            Invariant.HASHED,
        ),
        "an output is missing": (replace(history, outputs=history.outputs[1:]), Invariant.HASHED),
        "a spec in another tenant's folder": (
            replace(history, specs=(replace(first_spec, tenant="bert"), *history.specs[1:])),
            Invariant.OWN,
        ),
        "a result of another tenant": (replace(history, results=changed_result(history, tenant="bert")), Invariant.OWN),
        "a result of another photo": (
            replace(history, results=changed_result(history, image=f"{ROOT}/in/bert.png")),
            Invariant.OWN,
        ),
        "a picture of another tenant's photo": (
            replace(history, outputs=(replace(first_picture, shows="bert"), *history.outputs[1:])),
            Invariant.OWN,
        ),
        "an output of another job": (
            replace(history, outputs=(replace(first_picture, job_id="2"), *history.outputs[1:])),
            Invariant.OWN,
        ),
        "a rolled result that is not the job's": (
            replace(
                history,
                rolled=(
                    Rolled("x", (first_result.result.model_copy(update={"attempt": 9}), history.results[1].result)),
                ),
            ),
            Invariant.ROLLED,
        ),
        "a result rolled twice": (
            replace(history, rolled=(Rolled("x", (first_result.result,) * 2),)),
            Invariant.ROLLED,
        ),
        "an output that nobody names": (
            replace(history, outputs=(*history.outputs, replace(first_picture, uri=f"{ROOT}/outputs/anna/b/x.png"))),
            Invariant.COLLECTED,
        ),
        "a hint is left": (replace(history, left={**history.left, "unacked": 1}), Invariant.DRAINED),
    }


@pytest.mark.parametrize("name", bad_histories())
def test_a_bad_history_is_found(name):
    history, invariant = bad_histories()[name]
    assert invariant in {violation.invariant for violation in violations(history)}


def test_every_invariant_has_a_bad_history():
    assert {invariant for _, invariant in bad_histories().values()} == set(Invariant)


def test_attempts_may_begin_again_when_the_index_was_lost_in_between():
    claims = (Claimed("1", 3, 1.0, 1.1), Claimed("1", 1, 4.0, 4.1))
    assert violations(replace(good(), claims=claims))
    assert violations(replace(good(), claims=claims, resets=((2.0, 2.5),))) == []


def test_claims_of_one_moment_have_no_order():
    claims = (Claimed("1", 2, 1.0, 1.5), Claimed("1", 1, 1.2, 1.4))
    assert violations(replace(good(), claims=claims)) == []


def test_a_claim_after_the_end_may_begin_anew():
    history = good()
    assert violations(replace(history, claims=(*history.claims, Claimed("1", 1, 9.0, 9.1))))
    assert violations(replace(history, claims=(*history.claims, Claimed("1", 1, 11.0, 11.1)))) == []

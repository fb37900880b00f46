"""What can happen around the workers: Redis, the object store, dispatchers, and between any two writes."""

from __future__ import annotations

from typing import Final

from tests.faults.fault import ATTEMPTS, BATCHES, CHAOS, DISPATCHER, LEDGER, REDIS, RUNNER, S3, STORE, Fault

FAULTS_AROUND: Final = {
    "Redis": (
        Fault(
            "connections cut in mid-job",
            "the hint that Celery hands out again finds the job busy: one attempt",
            (f"{REDIS}test_connections_cut_in_mid_job_the_job_is_done_once_in_its_first_attempt",),
        ),
        Fault(
            "kill -9, append-only file on",
            "workers and dispatchers come back to it; nothing lost",
            (f"{REDIS}test_redis_killed_in_the_middle_of_many_jobs_loses_none",),
        ),
        Fault(
            "`FLUSHALL`",
            "the index is made again from the store",
            (
                f"{REDIS}test_after_flushall_the_index_is_made_again_from_the_store",
                f"{BATCHES}test_after_a_flush_nothing_is_missing_and_nothing_is_done_twice",
                "integration/test_batch_recovery.py::test_what_has_ended_is_counted_and_never_claimed_again",
                f"{BATCHES}test_a_batch_that_was_canceled_while_the_index_was_lost_stays_canceled",
                f"{BATCHES}test_a_retry_is_not_forgotten_with_the_index",
            ),
        ),
        Fault(
            "its volume is lost with it",
            "the same",
            (f"{REDIS}test_a_volume_that_is_lost_with_its_redis",),
        ),
        Fault(
            "a row is lost while its job runs",
            "its owner's next beat makes it again",
            (f"{LEDGER}test_a_row_that_redis_lost_is_made_again_by_its_owners_beat",),
        ),
        Fault(
            "read-only; out of memory",
            "submit says try later; what was accepted is done when it is over",
            (f"{REDIS}test_redis_that_takes_no_writes_submit_says_try_later_and_keeps_what_was_accepted",),
        ),
        Fault(
            "its disk is full",
            "submit says try later",
            (f"{REDIS}test_a_disk_that_is_full_under_redis_submit_says_try_later",),
        ),
        Fault(
            "another password, user, database or fewer rights than it asks for",
            "`QueueForbidden` at once, in one sentence: clients raise it, dispatcher and worker do not start",
            (
                "integration/test_ledger_forbidden.py::test_a_client_is_told_at_once_and_not_to_try_again",
                "integration/test_ledger_forbidden.py::test_a_process_refuses_to_start_with_that_sentence",
            ),
        ),
        Fault(
            "replies dropped (half-open)",
            "noticed by time-outs; nothing lost",
            (f"{REDIS}test_replies_that_are_dropped_lose_nothing",),
        ),
        Fault(
            "500 ms of latency, 5 % of the connections cut every second",
            "slow and right",
            (f"{REDIS}test_half_a_second_of_latency_and_cut_connections_are_slow_and_right",),
        ),
        Fault(
            "a message that is no hint",
            "dropped; the next job runs",
            (f"{DISPATCHER}test_hints_that_are_none_are_dropped_and_the_next_job_runs",),
        ),
        Fault("a hint is lost", "given again", (f"{BATCHES}test_a_lost_hint_is_given_again",)),
    ),
    "The object store": (
        Fault(
            "503",
            "tried again with full jitter",
            (f"{STORE}test_503_is_tried_again_and_the_job_succeeds",),
        ),
        Fault(
            "503 for longer than all attempts take",
            "the job fails with the store's error",
            (f"{RUNNER}test_transient_failures_end_after_max_attempts",),
        ),
        Fault(
            "no answers",
            "timed out and tried again",
            (f"{STORE}test_a_store_that_falls_silent_is_timed_out_and_tried_again",),
        ),
        Fault(
            "a body slower than the lease",
            "the lease is kept: bytes are progress",
            (f"{STORE}test_a_body_that_takes_longer_than_the_lease_keeps_it",),
        ),
        Fault(
            "a body that stalls or breaks off",
            "`StoreUnavailable`",
            (f"{S3}test_a_body_that_stalls", f"{S3}test_a_body_that_breaks_off"),
        ),
        Fault(
            "answers lost after the write was done",
            "the bytes that are there are adopted",
            (
                f"{STORE}test_answers_that_are_lost_after_the_write_are_adopted_or_found",
                f"{ATTEMPTS}test_adopted_bytes_are_those_that_were_written_first",
            ),
        ),
        Fault(
            "409, 412 at commit",
            "409: again; 412: the winner's result stands",
            (
                f"{S3}test_a_conflict_is_tried_again_and_a_lost_race_is_not",
                f"{RUNNER}test_a_cancel_that_comes_second_tells_how_the_job_ended",
            ),
        ),
        Fault(
            "a store that ignores create-once",
            "the dispatcher refuses to start on it",
            (f"{S3}test_a_store_that_ignores_create_once_is_refused",),
        ),
        Fault(
            "a store that is not mounted",
            "no job ends by that",
            (f"{RUNNER}test_a_store_that_is_not_mounted_ends_no_job",),
        ),
        Fault(
            "the local disk is full",
            "`StoreUnavailable`, one clear sentence",
            ("unit/test_storage_local.py::test_a_failed_write_leaves_nothing",),
        ),
    ),
    "Between two writes": (
        Fault(
            "another job's picture lies under an output's name",
            "`OutputExists`; told so, nothing is rendered, or another name taken",
            ("integration/test_if_exists.py::test_it_fails_by_default_and_skips_or_versions_when_told_to",),
        ),
        Fault(
            "such a picture's job has not ended, or came to nothing",
            "`OutputExists`, which says so and when to try again",
            (
                "integration/test_if_exists.py::test_a_picture_whose_job_has_not_ended_is_told_as_that",
                "integration/test_if_exists.py::test_skip_counts_on_no_picture_that_its_job_did_not_come_to_name",
            ),
        ),
        Fault(
            "a worker dies after the outputs, before the result",
            "the next attempt adopts them",
            (f"{ATTEMPTS}test_a_crash_between_outputs_and_result_adopts_the_outputs",),
        ),
        Fault(
            "the same, and its image, mask or weights are replaced before the next attempt",
            "`InputChanged`: what was made of other bytes is not passed off as made of these",
            (
                f"{ATTEMPTS}test_an_input_that_changed_since_an_earlier_attempt_wrote_outputs_is_said",
                f"{ATTEMPTS}test_a_lora_that_changed_too_and_a_new_one_of_the_same_bytes_not",
            ),
        ),
        Fault(
            "the same, and the job then fails or is canceled",
            "the dispatcher deletes them after the grace period, and nothing else",
            (
                "integration/test_orphans.py::test_what_a_dead_worker_left_of_a_job_that_failed_is_deleted",
                "integration/test_orphans.py::test_what_others_wrote_under_the_same_name_is_left_alone",
                "integration/test_orphans.py::test_outputs_of_jobs_that_succeeded_or_have_not_ended_are_left_alone",
            ),
        ),
        Fault(
            "a worker dies after the result, before the index",
            "the job is marked done and not rendered again",
            (f"{STORE}test_a_worker_that_died_after_the_result_and_before_the_index_leaves_no_work",),
        ),
        Fault(
            "a producer dies after the spec, before the index",
            "the job is found and rendered",
            (
                f"{STORE}test_a_producer_that_died_between_spec_and_index_the_job_is_found",
                f"{BATCHES}test_a_client_that_dies_after_the_spec_loses_nothing",
            ),
        ),
        Fault(
            "a producer dies in the middle of a batch",
            "nothing of it is rendered until it comes again under its key, and then all",
            (
                f"{STORE}test_a_producer_that_died_in_mid_batch_nothing_of_it_is_rendered_until_it_comes_back",
                f"{BATCHES}test_a_batch_that_was_cut_off_goes_on_under_its_key",
            ),
        ),
        Fault(
            "a producer dies after the footer, before the index",
            "the batch is found and rendered",
            (f"{BATCHES}test_a_client_that_dies_after_the_footer_loses_nothing",),
        ),
        Fault(
            "a dispatcher dies while it rolls a batch's results",
            "what is rolled is read, the rest job by job; the next one goes on from there",
            (
                "integration/test_batch_results.py::test_a_dispatcher_that_dies_on_the_way_is_gone_on_from",
                "integration/test_batch_results.py::test_after_a_flush_the_walk_names_what_is_left_to_roll",
            ),
        ),
        Fault(
            "an upgrade with old specs in flight",
            "they are read",
            (f"{STORE}test_a_spec_of_an_older_release_is_read",),
        ),
    ),
    "Dispatchers and load": (
        Fault(
            "no dispatcher for a while",
            "work is accepted, and done when one is back",
            (f"{DISPATCHER}test_without_any_dispatcher_work_is_accepted_and_done_when_one_is_back",),
        ),
        Fault(
            "two at once",
            "each job is hinted once",
            (
                f"{DISPATCHER}test_two_dispatchers_hint_each_job_once",
                f"{BATCHES}test_two_dispatchers_index_and_hint_every_job_once",
            ),
        ),
        Fault(
            "one of two is killed",
            "the other goes on",
            (f"{DISPATCHER}test_one_of_two_is_killed_and_the_other_goes_on",),
        ),
        Fault(
            "ten times the capacity is submitted",
            "a bounded window of hints; a tenant who comes later with little is not behind it all",
            (f"{DISPATCHER}test_ten_times_the_capacity_a_bounded_queue_and_fair_shares",),
        ),
        Fault(
            "a tenant over its quota",
            "told to try later",
            (f"{BATCHES}test_a_tenant_over_its_quota_is_told_to_try_later",),
        ),
        Fault(
            "canceled in the queue, in mid-job, after the end",
            "one end, and the true one",
            (
                f"{DISPATCHER}test_canceled_in_the_queue_and_in_mid_job_there_is_one_end_and_it_is_the_true_one",
                f"{RUNNER}test_cancel_after_the_end_tells_the_truth",
                f"{BATCHES}test_of_a_canceled_batch_nothing_more_is_rendered",
            ),
        ),
        Fault(
            "a deadline passes in the queue",
            "`DeadlineExceeded`, no device time",
            (f"{DISPATCHER}test_a_deadline_that_passes_in_the_queue_takes_no_device_time",),
        ),
    ),
    "All at once": (
        Fault("every kind of fault of the nemesis, overlapping", "every invariant of `history.py` holds", (CHAOS,)),
        Fault(
            "the same for plain Celery (`acks_late`, `reject_on_worker_lost`)",
            "it loses jobs, and none without faults: the test can fail",
            (
                "faults/test_chaos.py::test_plain_celery_loses_jobs_under_this_nemesis",
                "faults/test_chaos.py::test_plain_celery_loses_none_in_peace",
            ),
        ),
    ),
}

"""What can happen to a worker and its model."""

from __future__ import annotations

from typing import Final

from tests.faults.fault import ATTEMPTS, CHAOS, DISPATCHER, RENDERER, RUNNER, WATCHDOG, WORKERS, Fault

WORKER_FAULTS: Final = {
    "Workers": (
        Fault(
            "kill -9 in mid-step",
            "a new attempt within the lease and 5 s; one result",
            (f"{WORKERS}test_kill_9_in_mid_step_a_new_attempt_within_the_lease_and_five_seconds",),
        ),
        Fault("kill -9, again and again", "nothing lost, nothing doubled", (CHAOS,)),
        Fault(
            "SIGTERM, and the job fits `FARM_DRAIN_SECONDS`",
            "it is finished, the worker exits with 0",
            (f"{WORKERS}test_sigterm_a_job_that_fits_is_finished_and_the_worker_ends_well",),
        ),
        Fault(
            "SIGTERM, and the job does not fit",
            "saved after the current step and given back within 2 s, not charged; the next worker goes on there, to "
            "the same bits",
            (
                f"{WORKERS}test_sigterm_a_job_that_does_not_fit_is_saved_and_goes_on_elsewhere_uncharged",
                "engine/test_renderer_preemption.py::test_a_job_of_30_steps_resumes_at_its_step_to_the_same_bits",
                "integration/test_farm.py::test_a_preempted_job_goes_on_at_its_step_to_the_same_bits",
            ),
        ),
        Fault("SIGKILL during the drain", "as kill -9", (f"{WORKERS}test_kill_9_during_the_drain_is_as_kill_9",)),
        Fault(
            "SIGSTOP for longer than the lease, then CONT",
            "another worker's result stands; the stale one's bytes never win",
            (f"{WORKERS}test_a_worker_that_was_stopped_for_longer_than_its_lease_never_wins",),
        ),
        Fault(
            "a job takes down three workers",
            "dead, with its reason; the fleet lives",
            (
                f"{WORKERS}test_a_job_that_takes_three_workers_down_is_dead_and_the_fleet_lives",
                f"{RUNNER}test_a_job_that_takes_workers_down_is_given_up",
            ),
        ),
        Fault(
            "MemoryError or SystemExit inside a job",
            "it fails; the same process takes the next job",
            (
                f"{WORKERS}test_what_escapes_a_job_leaves_a_worker_that_takes_the_next",
                f"{RUNNER}test_whatever_escapes_a_job_the_next_one_runs",
            ),
        ),
        Fault(
            "a device that stands still",
            "the process ends within the stall limit, with every stack in its log; the next job is clean",
            (
                f"{WORKERS}test_a_device_that_stands_still_ends_its_process_and_the_next_job_is_clean",
                f"{WATCHDOG}test_a_stalled_render_ends_the_process_once_the_limit_is_reached",
            ),
        ),
        Fault(
            "a job that hangs in a process that lives",
            "no beat without progress: the lease ends and another worker takes the job",
            (f"{ATTEMPTS}test_a_job_that_hangs_loses_its_lease",),
        ),
        Fault(
            "a picture that takes longer to decode than the lease",
            "the lease is kept until the stage's deadline, and no longer",
            (
                f"{ATTEMPTS}test_a_stage_that_tells_no_progress_keeps_its_lease",
                f"{ATTEMPTS}test_but_not_for_longer_than_a_stage_may_take",
            ),
        ),
        Fault(
            "scale-in, node drain",
            "nothing lost, nothing charged; idle workers are marked to go first",
            (
                f"{DISPATCHER}test_scale_in_loses_nothing",
                "integration/test_deletion_cost.py::test_busy_workers_are_marked_and_idle_ones_not_each_once",
            ),
        ),
        Fault(
            "a process that holds more memory than it may",
            "it drains and ends, for another to be started",
            ("unit/test_lifecycle.py::test_a_process_that_holds_too_much_tells_itself_to_end_once",),
        ),
    ),
    "The model": (
        Fault(
            "out of memory once",
            "again, in smaller batches",
            (
                f"{RENDERER}test_out_of_memory_is_rendered_in_smaller_batches",
                f"{RENDERER}test_what_began_in_smaller_batches_resumes_elsewhere",
            ),
        ),
        Fault(
            "out of memory for one row; three jobs in a row",
            "the job is tried elsewhere; the process ends",
            (f"{RENDERER}test_no_room_for_one_row_is_the_jobs_failure_and_three_in_a_row_the_workers",),
        ),
        Fault(
            "an error after which the device is of no use",
            "not ready first, then the process ends",
            (f"{RENDERER}test_a_device_that_failed_is_not_ready_first_and_then_ends_the_worker",),
        ),
        Fault(
            "a picture that is not finite, or a decoder output of zeros",
            "`NonFiniteOutput`, `BlackOutput`; never stored as a success; a black picture is one",
            (
                f"{RENDERER}test_what_is_no_picture_is_never_a_success",
                f"{RENDERER}test_a_black_picture_is_a_picture",
            ),
        ),
        Fault(
            "a picture that the safety checker flags",
            "`NsfwContent`",
            (f"{RENDERER}test_a_flagged_picture_is_refused_as_such",),
        ),
        Fault(
            "a bad LoRA between two good jobs",
            "the good pictures are bit-equal to their baseline",
            ("integration/test_farm.py::test_a_bad_lora_between_good_jobs_harms_nothing",),
        ),
        Fault(
            "a thousand swaps",
            "no bit changed, flat memory",
            ("engine/test_lora_merge.py::test_a_thousand_swaps_change_no_bit_and_keep_no_memory",),
        ),
    ),
}

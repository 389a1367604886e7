"""The fault catalogue as data: what each number asks, and the tests that show it, or why none does."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CATALOGUE", "Entry"]


@dataclass(frozen=True, slots=True)
class Entry:
    """One number: `what` is asked, `tests` as "file or folder under tests::name", what is `missing` here, and why."""

    what: str
    tests: tuple[str, ...] = ()
    missing: str = ""


_DEATH = "races/test_death.py::"
_CRASHES = "faults/test_crashes.py::"
_NETWORK = "faults/test_network.py::"
_ENQUEUES = "races/test_enqueues.py::"
_INPUT = "faults::"  # names are what counts: where these tests are split among files is theirs to say
_RUN = "server/test_run.py::"

CATALOGUE: dict[str, Entry] = {
    "F01": Entry(
        "random workers killed every 300 ms: none lost, none run for nothing",
        (f"{_CRASHES}test_no_job_is_lost_while_workers_are_killed_every_300_ms",),
    ),
    "F02": Entry(
        "killed between claim and handler, handler and settle, and during the settle",
        (
            f"{_CRASHES}test_a_job_runs_again_once_where_its_process_dies",
            f"{_CRASHES}test_a_process_that_dies_while_it_settles_has_settled_or_has_not",
            f"{_CRASHES}test_a_job_of_a_killed_worker_does_not_wait_for_the_end_of_a_backlog",
            f"{_DEATH}test_a_job_of_a_killed_worker_runs_again_within_a_lease_and_two_seconds",
        ),
    ),
    "F03": Entry(
        "jobs that exit, segfault or kill their process",
        (
            f"{_CRASHES}test_jobs_that_end_their_process_end_exhausted_and_their_neighbours_complete",
            f"{_DEATH}test_a_poison_job_ends_exhausted_alone_and_the_others_complete",
        ),
        "the kernel's out-of-memory kill is a SIGKILL, and is not staged by using up the machine's memory",
    ),
    "F04": Entry(
        "SIGTERM under load, once and twice",
        (
            f"{_CRASHES}test_workers_asked_to_end_lose_and_repeat_nothing",
            f"{_CRASHES}test_a_worker_asked_twice_to_end_gives_its_jobs_back_at_once",
            f"{_DEATH}test_a_terminated_worker_gives_its_jobs_back_uncharged",
        ),
    ),
    "F05": Entry(
        "frozen beyond the lease: the fence holds",
        (
            f"{_CRASHES}test_workers_frozen_beyond_their_leases_change_nothing_when_they_go_on",
            f"{_CRASHES}test_a_worker_frozen_with_jobs_that_are_ready_starts_none_of_them_under_their_old_leases",
            f"{_CRASHES}test_a_stale_claim_writes_nothing_in_two_hundred_repeats",
            f"{_DEATH}test_a_frozen_worker_that_comes_back_changes_nothing_and_logs_lease_lost",
        ),
    ),
    "F06": Entry(
        "a handler that blocks the loop keeps its lease",
        (f"{_DEATH}test_a_handler_that_blocks_the_loop_for_two_leases_keeps_its_job",),
    ),
    "F07": Entry(
        "a producer killed in the middle of a batch",
        (f"{_CRASHES}test_a_killed_producer_leaves_each_acknowledged_job_once",),
    ),
    "F10": Entry(
        "5 % of replies cut, the command carried out",
        (f"{_NETWORK}test_replies_that_are_cut_off_lose_no_job_and_double_none",),
    ),
    "F11": Entry(
        "both tries of a claim lost",
        (
            f"{_NETWORK}test_a_claim_whose_replies_are_lost_twice_is_found_again_and_run_once",
            f"{_NETWORK}test_a_claim_of_a_worker_that_is_cut_off_for_good_is_taken_over_after_its_lease",
        ),
    ),
    "F12": Entry(
        "every connection reset every two seconds",
        (f"{_NETWORK}test_jobs_go_on_while_every_connection_is_reset_every_two_seconds",),
    ),
    "F13": Entry(
        "a black hole",
        (
            f"{_NETWORK}test_a_pool_goes_on_after_a_black_hole_with_no_more_threads_than_before",
            f"{_NETWORK}test_a_job_is_found_though_the_open_connections_have_died_in_silence",
        ),
    ),
    "F14": Entry("latency and jitter", (f"{_NETWORK}test_a_slow_network_costs_few_round_trips_a_job",)),
    "F15": Entry(
        "tiny segments, little bandwidth",
        (f"{_NETWORK}test_a_network_of_tiny_segments_or_little_bandwidth_breaks_nothing",),
    ),
    "F16": Entry(
        "the server killed and started again",
        (
            "faults/test_servers.py::test_jobs_and_outcomes_survive_kill_9_of_the_server",
            "faults/test_servers.py::test_workers_claim_again_soon_after_the_server_answers",
            "races/test_promise.py::test_a_job_whose_enqueue_returned_survives_kill_9_of_the_server",
        ),
    ),
    "F17": Entry("primaries that step down", (f"{_NETWORK}test_primaries_that_step_down_cost_the_user_no_error",)),
    "F18": Entry("a server that stalls", (f"{_NETWORK}test_a_server_that_stalls_time_and_again_costs_no_lease",)),
    "F19": Entry(
        "indexes missing, dropped, or there with other options",
        (
            "server/test_indexes.py::test_the_first_label_creates_the_index_that_makes_it_unique",
            "unit/test_indexes.py::test_an_index_that_is_missing_and_may_not_be_created_is_named_with_its_collection",
            "server/test_doctor.py::test_doctor_names_missing_indexes_and_fails",
            "faults/test_indexes.py::test_jobs_run_on_after_every_index_was_dropped",
            "faults/test_indexes.py::test_a_pool_runs_jobs_beside_an_index_with_other_options_and_says_so",
            "faults/test_indexes.py::test_a_label_is_refused_where_another_index_keeps_it_from_being_unique",
        ),
        "a queue that has seen the index of labels does not see that it was dropped since",
    ),
    "F20": Entry(
        "workers whose clocks are wrong",
        (
            "faults/test_clocks.py::test_workers_with_wrong_clocks_start_no_job_early_and_none_late",
            "faults/test_clocks.py::test_workers_with_wrong_clocks_steal_no_live_lease",
            "faults/test_clocks.py::test_the_falsified_clock_is_what_a_worker_sees",
        ),
    ),
    "F21": Entry(
        "the server's clock jumps",
        ("unit/test_clock.py::test_the_bounds_hold_over_any_run_of_samples",),
        "needs a server whose clock can be set; what follows from a jump is the clock's rule, tested without a server",
    ),
    "F22": Entry(
        "naive datetimes, microseconds, extreme years",
        (
            f"{_INPUT}test_a_job_is_due_at_its_moment_in_any_zone_and_never_before",
            f"{_INPUT}test_what_is_no_moment_that_can_be_kept_is_refused_by_its_option",
            "unit/test_clock.py::test_milliseconds_are_cut_in_utc",
        ),
    ),
    "F25": Entry(
        "change streams that fail for good, never deliver, or lose their collection",
        (
            "faults/test_streams.py::test_a_stream_that_fails_for_good_is_opened_anew_and_not_in_a_loop",
            "faults/test_streams.py::test_a_job_is_found_where_the_stream_never_delivers",
            "faults/test_streams.py::test_jobs_are_found_after_their_collection_was_dropped",
        ),
    ),
    "F26": Entry(
        "a standalone server",
        missing="no server without change streams is at hand; every server test runs on mongomock too, which has none",
    ),
    "F30": Entry(
        "payloads at random",
        (
            f"{_INPUT}test_a_payload_comes_back_equal_or_is_refused_by_field_and_nothing_is_stored",
            f"{_INPUT}test_of_many_payloads_all_are_stored_or_none",
            f"{_INPUT}test_keys_that_become_the_same_text_are_refused",
        ),
    ),
    "F31": Entry(
        "payloads at and beyond the limit",
        (
            f"{_INPUT}test_a_payload_beyond_the_limit_is_refused_with_both_sizes_before_anything_is_sent",
            f"{_INPUT}test_a_job_stays_small_however_often_and_loudly_it_fails",
        ),
    ),
    "F32": Entry(
        "stored documents corrupted by hand",
        (
            f"{_INPUT}test_jobs_complete_beside_every_document_that_was_corrupted",
            f"{_INPUT}test_jobs_complete_beside_a_document_of_wrong_types",
        ),
    ),
    "F33": Entry(
        "a model that has changed",
        (
            f"{_INPUT}test_a_job_of_an_older_model_runs_or_is_cancelled_with_the_field",
            f"{_RUN}test_a_payload_of_an_older_version_is_upgraded_before_it_is_read",
            f"{_RUN}test_an_upgrade_that_fails_ends_the_job_as_invalid",
        ),
    ),
    "F34": Entry("unknown task names", (f"{_RUN}test_jobs_of_an_unknown_task_are_left_alone_and_counted",)),
    "F35": Entry("injection by label, id, status and reason", (f"{_INPUT}test_a_label_is_only_ever_text",)),
    "F36": Entry(
        "handlers that raise anything, return anything, or never end",
        (
            f"{_INPUT}test_whatever_ends_a_handler_is_its_jobs_failure_alone",
            f"{_INPUT}test_a_handler_that_swallows_its_cancellation_ends_as_it_says_once_it_does",
            f"{_INPUT}test_an_exception_whose_text_exits_is_still_described",
            f"{_RUN}test_a_handler_that_will_not_stop_is_abandoned_and_its_worker_replaced",
        ),
    ),
    "F40": Entry(
        "many claim the same jobs",
        (
            "faults/test_contention.py::test_sixty_four_threads_claim_each_job_once",
            "faults/test_contention.py::test_pools_that_know_each_other_hardly_race_for_jobs",
            "faults/test_contention.py::test_a_pool_runs_the_jobs_that_a_busy_pool_would_have_taken",
            "races/test_competition.py::test_eight_processes_of_four_workers_run_each_of_two_thousand_jobs_once",
        ),
    ),
    "F41": Entry(
        "many enqueue one label",
        (
            "faults/test_contention.py::test_of_many_enqueues_of_one_label_one_wins_and_the_others_learn_its_id",
            "races/test_competition.py::test_a_label_is_held_by_one_live_job_while_processes_race_for_it",
            f"{_ENQUEUES}test_a_label_has_one_live_job_and_a_running_job_is_not_replaced_however_conflicts_are_met",
            f"{_ENQUEUES}test_of_many_processes_one_enqueues_per_window_though_its_job_is_removed_at_once",
        ),
    ),
    "F42": Entry(
        "a label enqueued while its holder completes",
        ("unit/test_enqueue.py::test_a_label_whose_holder_has_just_ended_is_had_after_all",),
        "an enqueue that insists on a live job is a later feature",
    ),
    "F43": Entry(
        "cancel, complete, fail, extend and claim race",
        ("faults/test_contention.py::test_of_writes_that_race_for_one_job_one_wins",),
    ),
    "F44": Entry(
        "periodic jobs with many schedulers",
        (
            "races/test_groups.py::test_each_slot_has_one_job_though_its_pools_are_killed_and_started_again",
            "server/test_periodic.py::test_each_slot_has_one_job_over_all_pools",
        ),
    ),
    "F45": Entry(
        "an enqueue in a transaction",
        (
            "faults/test_contention.py::test_a_job_of_a_transaction_exists_once_it_commits_however_often_it_was_tried",
            "server/test_enqueue.py::test_a_taken_label_is_refused_without_aborting_the_transaction",
        ),
    ),
    "F46": Entry(
        "one effect for two deliveries",
        (
            "races/test_bank.py::test_a_process_killed_in_a_transaction_has_done_all_of_it_or_nothing",
            "races/test_bank.py::test_transfers_of_several_processes_happen_once_each_with_what_follows",
        ),
        "of what a handler writes in its transaction; effects elsewhere need the job's id as their key",
    ),
    "F50": Entry(
        "an attempt beyond its timeout",
        ("faults/test_limits.py::test_an_attempt_beyond_its_timeout_is_a_timeout_whatever_it_returns",),
    ),
    "F51": Entry(
        "extending after the loss; delays of retries",
        (
            f"{_CRASHES}test_a_stale_claim_writes_nothing_in_two_hundred_repeats",
            f"{_INPUT}test_a_failed_job_waits_longer_each_time_and_never_beyond_the_limit",
            f"{_INPUT}test_a_job_is_put_off_by_its_delay_to_the_millisecond",
            "unit/test_backoff.py::test_without_jitter_a_later_attempt_never_waits_less",
            "unit/test_backoff.py::test_a_delay_never_exceeds_the_longest_jitter_or_not",
        ),
    ),
    "F60": Entry(
        "the soak",
        (
            "faults/test_soak.py::test_a_short_soak_has_no_breach_and_writes_its_report",
            "faults/test_soak.py::test_a_soak_that_drifts_is_a_breach",
            "faults/test_soak.py::test_a_soak_that_stays_as_it_was_is_none",
            "faults/test_soak.py::test_a_soak_ends_with_an_error_if_anything_was_breached",
        ),
        "the hour at night: `make chaos` runs as long as it is told to",
    ),
    "F61": Entry(
        "removal of ended jobs",
        ("server/test_ttl.py::test_the_server_removes_an_ended_job_after_its_retention_and_never_a_live_one",),
        "a million ended jobs: `benchmarks/`",
    ),
    "F62": Entry(
        "nothing left behind",
        (
            "faults/test_leaks.py::test_pools_that_have_ended_leave_no_task_thread_or_socket",
            "faults/test_leaks.py::test_a_pool_that_ends_while_its_server_is_silent_leaves_nothing",
            "faults/test_leaks.py::test_a_queue_on_one_event_loop_after_another_keeps_nothing_of_those_that_ended",
        ),
    ),
    "M1": Entry(
        "histories of jobs at random, against a model",
        (
            "faults/test_model.py::test_no_history_of_jobs_departs_from_the_reference",
            "faults/test_model.py::test_no_history_on_mongomock_departs_from_the_reference",
        ),
    ),
    "M2": Entry(
        "every interleaving of few workers on one job",
        (
            "faults/test_interleavings.py::test_no_short_interleaving_breaks_a_promise",
            "faults/test_interleavings.py::test_no_interleaving_breaks_a_promise",
            "faults/test_interleavings.py::test_no_long_interleaving_breaks_a_promise",
            "faults/test_interleavings.py::test_a_guard_that_is_left_out_is_found_with_the_way_there",
        ),
    ),
    "M3": Entry("a model in a language of its own", missing="M2 explores axeq's own rules and needs no Java"),
    "M4": Entry(
        "histories judged job by job",
        ("faults/test_checker.py::test_the_checker_reports",),
        "the checker holds each job's history to the state machine; it searches no linearization",
    ),
    "M5": Entry(
        "mistakes put into the state machine and the fence",
        (
            "faults/test_fence.py::test_taking_the_token_out_of_the_fence_fails_tests_by_name",
            "faults/test_fence.py::test_taking_a_guard_out_fails_tests",
            "faults/test_fence.py::test_nine_of_ten_mistakes_in_the_state_machine_fail_a_test",
        ),
    ),
    "M6": Entry(
        "a server is tried before it is believed",
        (
            "server/test_doctor.py::test_the_server_of_the_tests_does_what_axeq_needs",
            "server/test_doctor.py::test_a_server_that_only_pretends_is_found_out",
        ),
    ),
}

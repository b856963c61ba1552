"""Each fault by its number: its one right outcome, and the tests that make it happen."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["SCENARIOS", "Scenario"]

_REDIS_CONTRACT = "stores/test_contract.py::TestRedisByAVirtualClock::"


@dataclass(frozen=True)
class Scenario:
    """One fault."""

    number: int
    fault: str
    outcome: str
    #: The tests, as pytest names them, below ``tests/`` and without parameters.
    tests: tuple[str, ...]


def _all(*rows: tuple[str, str, tuple[str, ...]]) -> tuple[Scenario, ...]:
    return tuple(Scenario(number, *row) for number, row in enumerate(rows, start=1))


_THOUGHT_OF = _all(
    (
        "Crash before the claim",
        "The redelivery runs.",
        ("faults/test_kills.py::test_a_process_that_dies",),
    ),
    (
        "Crash after the claim, before the effect",
        "Taken over with a higher token: at once if the worker's parent lives, or after the lease.",
        (
            "faults/test_kills.py::test_a_process_that_dies",
            "faults/test_kills.py::test_a_machine_that_dies",
            "system/test_crashes.py::test_a_killed_pool_child_frees_its_key_at_once",
            "faults/test_topologies.py::test_tls",
            "faults/test_topologies.py::test_a_socket",
            "faults/test_topologies.py::test_redis",
        ),
    ),
    (
        "Crash after the effect, before it is recorded",
        "The effect is made again, by a run that knows: interrupted, and the same key_for.",
        (
            "faults/test_kills.py::test_a_process_that_dies",
            "faults/test_kills.py::test_a_machine_that_dies",
            "system/test_crashes.py::test_an_interruption_can_be_final",
            "run/test_steps.py::test_reconcile_is_asked_first_after_an_interruption",
        ),
    ),
    (
        "Crash after recording, before the result backend",
        "Replayed: the result is written, the callbacks are sent.",
        ("faults/test_kills.py::test_a_process_that_dies",),
    ),
    (
        "Crash after the callbacks' note, before the ack",
        "Replayed; the callbacks are not sent twice.",
        ("faults/test_kills.py::test_a_process_that_dies",),
    ),
    (
        "Crash between two steps",
        "The next run goes on after the last step that was recorded.",
        ("faults/test_kills.py::test_a_process_that_dies_between_two_steps",),
    ),
    (
        "The claim's answer is lost",
        "Asked again, the same claim is granted with the same token.",
        (
            "faults/test_lost_answers.py::test_an_answer_is_lost",
            "stores/redis/test_wire.py::test_a_lost_answer_to_a_claim_costs_nothing",
        ),
    ),
    (
        "The completion's answer is lost",
        "Told again, it is accepted.",
        (
            "faults/test_lost_answers.py::test_an_answer_is_lost",
            "stores/redis/test_wire.py::test_a_lost_answer_to_a_completion_costs_nothing",
        ),
    ),
    (
        "A zombie completes after a takeover",
        "Refused: the winner's result stands, and the zombie's caller gets it too.",
        (
            "system/test_zombies.py::test_a_late_completion_is_refused",
            "system/test_zombies.py::test_a_zombie_that_ends_first_waits_for_the_winner",
        ),
    ),
    (
        "A zombie fails or retries after a takeover",
        "It changes nothing.",
        (
            "system/test_zombies.py::test_a_late_failure_changes_nothing",
            "system/test_zombies.py::test_a_hard_time_limit_of_a_zombie_changes_no_answer",
            "system/test_zombies.py::test_a_zombie_with_a_hard_time_limit_gets_the_winners_outcome",
            "faults/test_stalls.py::test_a_zombies_retry_changes_nothing",
        ),
    ),
    (
        "A late completion, nobody having taken over",
        "Accepted.",
        ("faults/test_stalls.py::test_a_late_completion_that_nobody_overtook",),
    ),
    (
        "A zombie's heartbeat",
        "Refused; check() tells the body.",
        ("faults/test_stalls.py::test_a_zombie_can_ask",),
    ),
    (
        "SIGSTOP for longer than the lease",
        "As 9.",
        ("system/test_zombies.py::test_a_late_completion_is_refused",),
    ),
    (
        "The GIL held for longer than the lease",
        "As 9 where another took over, as 11 where nobody did.",
        ("faults/test_stalls.py::test_the_gil_is_held",),
    ),
    (
        "The worker's clock an hour off",
        "Leases, tokens and answers are the same.",
        ("faults/test_clocks.py::test_a_workers_clock_decides_nothing",),
    ),
    (
        "The store's clock jumps ahead",
        "An early takeover; the tokens are in order.",
        (
            "faults/test_clocks.py::test_the_stores_clock_jumps_ahead",
            _REDIS_CONTRACT + "test_a_clock_that_jumps_ahead_only_takes_over_early",
        ),
    ),
    (
        "The store's clock goes back, or a record expires",
        "No token is used twice or falls while a record is left.",
        (
            "faults/test_clocks.py::test_the_stores_clock_goes_back",
            _REDIS_CONTRACT + "test_tokens_rise_where_the_clock_goes_back",
        ),
    ),
    (
        "A failover that loses a claim",
        "Two runs, two effects; one is accepted, and both callers get its answer.",
        ("faults/test_failover.py::test_a_failover_that_loses_a_claim",),
    ),
    (
        "A failover that loses a completion",
        "The next call runs again; with idempotency_wait_replicas it is told again, and doesn't.",
        (
            "faults/test_failover.py::test_a_failover_that_loses_a_completion",
            "faults/test_failover.py::test_waiting_for_a_replica_loses_no_completion",
        ),
    ),
    (
        "The store comes back empty",
        "A running task's completion is accepted, and answers its duplicates.",
        (
            (
                "system/test_outages.py"
                "::test_a_run_that_ends_while_the_store_is_away_is_recorded_later"
            ),
        ),
    ),
    (
        "A maxmemory-policy that evicts",
        "Warned of when the worker starts.",
        ("system/test_check_up.py::test_each_fault_of_a_bad_configuration_is_named",),
    ),
    (
        "The store is out of memory",
        "At the claim no body runs; at the end the caller gets its result, recorded later.",
        (
            "faults/test_servers.py::test_a_claim_is_refused",
            "faults/test_servers.py::test_a_completion_is_refused",
        ),
    ),
    (
        "The store is down at the claim",
        "The call waits, its body not run; it runs open only if asked to.",
        (
            "system/test_outages.py::test_calls_wait_for_a_store_that_is_away",
            "system/test_outages.py::test_an_outage_can_be_run_through",
            "faults/test_sql_restarts.py::test_killed_in_the_middle_of_a_body",
            "faults/test_sql_restarts.py::test_killed_between_the_claim_and_the_completion",
            "faults/test_cluster.py::test_a_master_dies_and_its_replica_takes_over",
        ),
    ),
    (
        "SCRIPT FLUSH, MOVED, ASK, READONLY, a failover by Sentinel",
        "Invisible, or waited for, or a clear error.",
        (
            "faults/test_servers.py::test_scripts_are_flushed_in_every_moment",
            "faults/test_servers.py::test_a_claim_is_refused",
            "faults/test_servers.py::test_a_completion_is_refused",
            "faults/test_failover.py::test_sentinel_fails_over_under_load",
            "faults/test_cluster.py::test_a_slot_moves_during_a_run",
            "faults/test_cluster.py::test_slots_move_under_load",
            "faults/test_cluster.py::test_what_has_moved_is_found_in_a_slot_that_moves",
            "faults/test_cluster.py::test_a_slot_without_an_end_is_an_outage",
            "faults/test_cluster.py::test_a_node_alone_says_where_the_key_is",
        ),
    ),
    (
        "Many claims at once",
        "One winner, and one answer for all.",
        (
            (
                "system/test_duplicates.py"
                "::test_twenty_at_once_are_one_effect_and_twenty_equal_answers"
            ),
            _REDIS_CONTRACT + "test_of_many_at_once_one_gets_the_key",
        ),
    ),
    (
        "The same explicit key with other arguments",
        "IdempotencyKeyMismatch, before completion and after it.",
        (
            "system/test_keys.py::test_the_same_key_with_other_arguments_is_an_error",
            "system/test_keys.py::test_a_mismatch_is_found_while_the_first_call_runs",
        ),
    ),
    (
        "Equal calls in other spellings",
        'One key; 1, 1.0, True and "1" are four.',
        (
            "core/test_keys.py::test_one_call_in_all_its_spellings_has_one_key",
            "core/test_keys.py::test_types_matter_where_all_arguments_are_the_key",
        ),
    ),
    (
        "An argument with no canonical form",
        "An error at the call that names it.",
        (
            "core/test_keys.py::test_an_argument_without_a_canonical_form_is_named",
            "faults/test_bad_input.py::test_any_argument_is_a_text_or_a_typed_error",
        ),
    ),
    (
        "A huge result",
        "Its caller gets it, duplicates get ResultNotKept; nothing runs again.",
        ("faults/test_bad_input.py::test_a_huge_result_is_not_run_again",),
    ),
    (
        "A record that is corrupt, or of a newer version",
        "RecordCorrupt, or waited for; the body doesn't run.",
        (
            "faults/test_bad_input.py::test_damaged_records_run_nothing",
            "faults/test_deploys.py::test_a_record_of_a_newer_version_is_waited_for",
        ),
    ),
    (
        "self.retry and autoretry",
        "The key stays its owner's through the back-off.",
        (
            "system/test_retries.py::test_duplicates_in_the_back_off_wait_for_the_last_attempt",
            "system/test_retries.py::test_autoretry_is_a_retry_like_another",
            "faults/test_kills.py::test_a_process_that_dies_in_its_retry",
        ),
    ),
    (
        "Retries used up",
        "The key is free, or the failure stored if asked to.",
        (
            "system/test_retries.py::test_retries_that_are_used_up_free_the_key",
            "system/test_retries.py::test_a_stored_failure_is_an_outcome",
        ),
    ),
    (
        "Every other way to end: Ignore, Reject, replace, revoke, time limits, shutdowns",
        "No key stays locked.",
        (
            "system/test_endings.py::test_a_body_that_leaves_by_a_verdict_of_its_own",
            "system/test_endings.py::test_a_soft_time_limit_is_a_failure",
            "system/test_endings.py::test_a_hard_time_limit_frees_the_key",
            (
                "system/test_zombies.py::"
                "test_a_run_that_holds_its_key_fails_once_by_its_hard_time_limit"
            ),
            "system/test_endings.py::test_a_revoked_run_frees_the_key",
            "system/test_endings.py::test_a_run_that_is_revoked_with_sigkill_frees_the_key",
            "system/test_endings.py::test_a_warm_shutdown_lets_the_run_finish",
            "system/test_endings.py::test_a_shutdown_in_the_middle_hands_the_run_over",
            "system/test_crashes.py::test_a_killed_pool_child_frees_its_key_at_once",
        ),
    ),
    (
        "The visibility timeout passes while the task runs",
        "No overlap, no second callback, and no early ack that could lose it.",
        (
            "system/test_redelivery.py::test_a_running_task_is_not_run_again",
            ("system/test_callbacks.py::test_a_chain_whose_head_is_delivered_again_has_one_tail"),
            ("system/test_zombies.py::test_a_zombie_that_its_own_copy_overtook_leaves_a_message"),
        ),
    ),
    (
        "Duplicates inside a group, chain and chord",
        "Everyone is answered; the chord's body runs once.",
        (
            "system/test_callbacks.py::test_a_group_with_duplicates_answers_every_member",
            "system/test_callbacks.py::test_a_chord_with_duplicates_runs_its_body_once",
            ("system/test_callbacks.py::test_a_chain_whose_head_is_delivered_again_has_one_tail"),
        ),
    ),
    (
        "Attaching at the enqueue races with the end or the expiry of the record",
        "Published where in doubt, deduplicated by the worker; nothing is lost.",
        (
            "faults/test_deploys.py::test_attached_calls_race_with_the_end_of_the_window",
            (
                "publishing/test_reserved.py"
                "::test_a_lease_that_is_over_and_a_retry_that_is_overdue_are_published"
            ),
            (
                "publishing/test_reserved.py"
                "::test_a_worker_that_is_quicker_than_the_confirmation_ends_the_reservation"
            ),
        ),
    ),
    (
        "Old and new versions of the library share records",
        "What is newer is waited for, and neither run nor failed.",
        (
            "faults/test_deploys.py::test_a_record_of_a_newer_version_is_waited_for",
            "core/test_record.py::test_the_packed_form_is_fixed",
        ),
    ),
    (
        "Every pool: prefork, threads, gevent, solo",
        "No socket is shared over a fork, and no thread is left.",
        (
            "system/test_pools.py::test_duplicates_retries_and_replays",
            "system/test_pools.py::test_a_warm_shutdown_leaves_nothing_behind",
            "stores/redis/test_wire.py::test_a_child_leaves_its_parents_connections",
        ),
    ),
    (
        "forget during a run",
        "The late completion is refused.",
        ("system/test_zombies.py::test_a_forgotten_run_ends_unrecorded",),
    ),
    (
        "A task that kills its worker every time",
        "It stops after idempotency_max_interruptions, with OutcomeUnknown.",
        ("system/test_crashes.py::test_a_task_that_kills_its_worker_is_given_up",),
    ),
    (
        "A producer that isn't ours, and one that is",
        "The same call has one key.",
        (
            "system/test_keys.py::test_a_producer_that_knows_nothing_of_us_can_send_the_key",
            "system/test_keys.py::test_without_a_header_the_worker_derives_the_same_key",
        ),
    ),
    (
        "A retry whose message was lost",
        "The key opens again after its due time and a lease.",
        ("system/test_retries.py::test_a_retry_whose_message_was_lost_opens_the_key_again",),
    ),
    (
        "The owner's redelivered copy while the first delivery runs",
        "It outwaits every timeout, and runs if the first is killed.",
        ("system/test_redelivery.py::test_the_owners_copy_outwaits_every_timeout",),
    ),
    (
        "Old copies of a message that has been retried since",
        "Superseded: max_retries and the back-off hold to the letter.",
        (
            ("system/test_redelivery.py::test_retries_are_exact_though_each_outlives_the_timeout"),
            (
                "system/test_redelivery.py"
                "::test_a_copy_in_the_back_off_does_not_begin_the_next_attempt"
            ),
        ),
    ),
    (
        "A task that failed for good, with a copy left over",
        "The copy doesn't run it again.",
        (
            (
                "system/test_retries.py"
                "::test_after_a_failure_the_next_call_runs_and_a_leftover_copy_does_not"
            ),
        ),
    ),
    (
        "A claim that the server executes after the client gave up",
        "Undone: no interruption is counted for a body that never ran.",
        ("system/test_outages.py::test_a_paused_store_counts_no_interruptions",),
    ),
    (
        "Crash in mid-compensation",
        "The compensation goes on, the body doesn't run, no finished step stays uncompensated.",
        ("faults/test_kills.py::test_a_process_that_dies_while_it_undoes",),
    ),
    (
        "COMMIT's answer is lost",
        "The token is read back: one effect.",
        (
            "stores/sql/test_transaction.py::test_a_lost_answer_of_a_commit_that_arrived",
            "stores/sql/test_transaction.py::test_a_lost_answer_of_a_commit_that_did_not_arrive",
            "faults/test_sql_restarts.py::test_killed_under_the_transaction_of_a_body",
            "faults/test_sql_restarts.py::test_killed_under_a_django_project",
        ),
    ),
    (
        "Two containers with the same host name and pid",
        "Neither ends the other's lease.",
        (
            "faults/test_kills.py::test_two_containers_with_one_host_name_and_pid",
            _REDIS_CONTRACT + "test_only_what_that_process_held_for_that_message",
            "core/test_record.py::test_one_host_and_pid_are_not_one_process",
        ),
    ),
    (
        "A deploy changes the key option or the arguments, with messages in flight",
        "A message keeps the key that it was sent with; its owner's copies are not checked.",
        (
            "faults/test_deploys.py::test_a_parameter_is_added",
            "faults/test_deploys.py::test_a_message_keeps_the_key_that_it_was_sent_with",
            "faults/test_deploys.py::test_an_owner_is_never_checked",
        ),
    ),
)

_FOUND_BY_USE = (
    Scenario(
        59,
        "An error or a signal between the grant of a key and the body; several claims given up",
        "The claims are undone: nothing is held, and no run counts as cut off.",
        (
            "run/test_claim.py::test_what_cuts_in_before_the_body_leaves_the_key_free",
            "run/test_claim.py::test_a_process_that_cannot_keep_a_lease_runs_nothing",
            _REDIS_CONTRACT + "test_each_claim_that_was_given_up_gets_nothing",
            _REDIS_CONTRACT + "test_what_was_counted_stands_after_two",
        ),
    ),
    Scenario(
        60,
        "The store stands still, or is dead, for longer than the leases; all processes live",
        "One body a key: what met the outage leaves the runs a lease in which to renew, and claims "
        "that wait in the server's sockets get nothing.",
        (
            (
                "faults/test_outage_longer_than_the_lease.py"
                "::test_no_duplicate_takes_over_from_a_run_that_lives"
            ),
            ("faults/test_outage_longer_than_the_lease.py::test_no_body_that_has_ended_runs_again"),
            _REDIS_CONTRACT + "test_after_an_outage_the_runs_renew_first",
        ),
    ),
    Scenario(
        51,
        "A run outlives the visibility timeout and ends by Ignore, Reject or replace",
        "Its copies run nothing and publish nothing.",
        (
            (
                "system/test_answered.py"
                "::test_a_run_that_leaves_without_an_outcome_leaves_no_run_behind"
            ),
            _REDIS_CONTRACT + "test_a_copy_of_an_ignored_call_runs_nothing",
            _REDIS_CONTRACT + "test_a_call_that_only_gave_up_its_key_runs_again",
        ),
    ),
    Scenario(
        52,
        "A call fails, another gets the key, and a copy of the first one's message comes",
        "The first call's answer stands, and its body never runs again; so for a caller that "
        "waited for it and shared its failure.",
        (
            "system/test_answered.py::test_a_failure_stays_though_the_key_is_anothers_since",
            "system/test_answered.py::test_a_shared_failure_stays",
            _REDIS_CONTRACT + "test_a_failed_call_keeps_its_failure",
            (_REDIS_CONTRACT + "test_a_waiter_shares_the_failure_whoever_has_the_key_since"),
        ),
    ),
    Scenario(
        81,
        "A hard time limit fails a call, or a revoke ends its run, while its copy waits",
        "The copy runs nothing and gets that failure, in either pool that enforces limits; for "
        "other calls the run was cut off.",
        (
            "system/test_answered.py::test_a_call_that_its_hard_time_limit_has_failed_runs_no_more",
            "system/test_answered.py::test_a_copy_of_such_a_call_gets_its_failure",
            _REDIS_CONTRACT + "test_a_call_whose_run_was_ended_runs_no_more",
            _REDIS_CONTRACT + "test_for_others_a_run_that_was_ended_is_cut_off",
        ),
    ),
    Scenario(
        53,
        "A copy of an answered call, with task_track_started",
        "No STARTED and no RETRY is stored over the answer, on any result backend.",
        (
            "delivery/test_guard.py::test_no_other_state_is_stored_once_a_call_is_answered",
            "delivery/test_guard.py::test_what_waits_says_so_before_it_may_be_answered",
            "system/test_answered.py::test_no_state_is_written_over_an_answer",
            ("system/test_answered.py::test_a_retry_is_stored_before_the_next_attempt_can_answer"),
            "system/test_answered.py::test_what_a_caller_wants_to_know_is_stored",
        ),
    ),
    Scenario(
        54,
        "A stalled run ends after its copy was told that the outcome is unknown",
        "One kind of callback went out, not both.",
        (
            (
                "system/test_answered.py"
                "::test_a_stalled_run_sends_no_link_once_its_copy_has_sent_its_errback"
            ),
            _REDIS_CONTRACT + "test_a_run_whose_copy_is_answering_does_not",
            _REDIS_CONTRACT + "test_a_run_that_ends_before_its_copy_answers",
        ),
    ),
    Scenario(
        55,
        "Copies of one duplicate are due together; its callbacks' note can't be written at once",
        "Its callbacks go out once; the note is told until the store has it.",
        (
            "system/test_answered.py::test_copies_of_a_duplicate_send_its_link_once",
            _REDIS_CONTRACT + "test_copies_of_a_duplicate_send_its_callbacks_alone",
            "delivery/test_guard.py::test_a_note_is_told_until_the_store_takes_it",
            "delivery/test_guard.py::test_a_note_that_a_soft_time_limit_cuts_off_is_told_again",
            "delivery/test_seam.py::test_what_hangs_on_a_task_and_is_sent_again_is_the_same_messages",
        ),
    ),
    Scenario(
        56,
        "A task id is published anew",
        "After the window, or after forget, it is a new call. While the record is there, what "
        "hangs on it is sent, if that is other than before.",
        (
            "system/test_answered.py::test_a_used_task_id_is_a_new_call",
            "system/test_answered.py::test_other_callbacks_of_a_used_task_id_are_sent",
            "system/test_answered.py::test_a_signature_that_is_used_in_two_canvases",
            _REDIS_CONTRACT + "test_other_callbacks_of_the_same_task_id_are_sent_once",
        ),
    ),
    Scenario(
        62,
        "A pool's process is replaced, or stopped, while an outcome is owed to the store",
        "It is told first, for 30 s at most (5 s in a worker that stops); what was not told is an "
        "ERROR with the key and the outcome.",
        (
            "faults/test_recycled.py::test_a_recycled_process_tells_first",
            "faults/test_recycled.py::test_what_a_process_could_not_tell_is_an_error",
            "run/test_heartbeat.py::test_a_process_that_ends_says_what_it_could_not_tell",
        ),
    ),
    Scenario(
        63,
        "A step whose result can't be kept, in a saga that fails",
        "All that can be undone is undone; what can't, for want of its result, is named, and only "
        "then is the outcome unknown.",
        (
            "run/test_steps.py::test_a_result_that_is_not_kept_stops_no_compensation",
            "run/test_steps.py::test_an_immutable_compensation_runs_without_its_steps_result",
            "run/test_steps.py::test_what_cannot_be_undone_for_want_of_its_result_is_said",
        ),
    ),
    Scenario(
        64,
        "Broadcast: every worker gets a copy of each message",
        "One runs it. A copy that waits is put back where it came from: there are never more of "
        "them. If the run dies, one of them takes over.",
        (
            "faults/test_broadcast.py::test_a_message_that_is_put_back_comes_to_one_worker",
            "faults/test_broadcast.py::test_a_copy_takes_over_from_a_worker_that_dies",
            "faults/test_broadcast.py::test_a_retry_comes_once_to_each",
            "delivery/test_origin.py::test_a_topic_exchange",
            "delivery/test_origin.py::test_a_direct_exchange_with_several_queues",
        ),
    ),
    Scenario(
        58,
        "A tracer nests the headers; a header is no text; a call has an unknown option",
        "The key is read wherever it stands; what can't be read is refused, never guessed.",
        (
            "faults/test_tracers.py::test_a_tracer_nests_the_headers",
            "faults/test_tracers.py::test_a_tracer_nests_the_headers_of_a_message_that_comes_again",
            "faults/test_tracers.py::test_a_tracer_nests_the_headers_of_a_message_whose_process_dies",
            "faults/test_tracers.py::test_a_header_that_is_no_text",
            "publishing/test_publishing.py::test_an_option_of_a_call_that_is_none_is_refused",
            "outbox/test_outbox.py::test_an_option_that_nobody_would_read_is_refused",
        ),
    ),
    Scenario(
        65,
        "A body that is async, a class that passes by the guard, a name that is nearly an option",
        "A ConfigurationError: when the task is bound, when the worker starts, or at the first "
        "delivery, before its body runs. Nothing is silently plain.",
        (
            "delivery/test_task_checks.py::test_a_body_that_does_not_run_when_it_is_called_is_refused",
            "delivery/test_task_checks.py::test_a_hidden_one_is_refused_at_its_first_delivery",
            "delivery/test_task_checks.py::test_a_task_that_takes_its_messages_by_itself_is_refused",
            "delivery/test_task_checks.py::test_a_request_class_that_is_not_ours_is_refused",
            "delivery/test_task_checks.py::test_a_pool_in_which_nothing_would_be_guarded_is_refused",
            "delivery/test_task_checks.py::test_a_class_with_an_on_bound_of_its_own_is_guarded",
            "faults/test_silently_plain.py::test_a_call_that_passes_by_the_guard",
            "faults/test_silently_plain.py::test_a_worker_with_an_option_that_nothing_reads",
            "faults/test_silently_plain.py::test_a_worker_of_an_app_without_a_task_of_ours",
        ),
    ),
    Scenario(
        57,
        "A base's apply_async locks, and a message of its call is published again",
        "It gets past that lock: the call runs, once.",
        (
            "system/test_outages.py::test_a_lock_at_the_enqueue_keeps_nothing_back",
            "delivery/test_waiting.py::test_a_message_that_is_put_back",
            "delivery/test_waiting.py::test_a_retry",
            "outbox/test_outbox.py::test_a_row_gets_past_a_base_that_locks",
        ),
    ),
    Scenario(
        61,
        "A replica that lags while connected, with idempotency_wait_replicas",
        "No telling of an end counts for it: the end is told until the replica has it.",
        (
            "faults/test_failover.py::test_an_end_told_again_is_counted_by_itself",
            "faults/test_failover.py::test_the_end_of_a_run_that_gave_its_key_up_is_counted_by_itself",
            "faults/test_failover.py::test_an_end_on_no_replica_is_told_on",
        ),
    ),
    Scenario(
        71,
        "The channel on which ends are told is cut",
        "The worker subscribes again, and looks.",
        ("faults/test_woken.py::test_the_channel_is_cut",),
    ),
    Scenario(
        72,
        "The store is restarted while calls wait",
        "The worker subscribes again; all are answered, once.",
        ("faults/test_woken.py::test_the_store_is_restarted",),
    ),
    Scenario(
        73,
        "The store's user may not publish or subscribe",
        "Nothing fails; the worker looks.",
        ("faults/test_woken.py::test_nobody_may_publish",),
    ),
    Scenario(
        74,
        "A run's end is told by nobody",
        "A look finds it.",
        ("faults/test_woken.py::test_an_end_is_told_by_nobody",),
    ),
    Scenario(
        75,
        "An end is told that is none",
        "Nobody is let in.",
        ("faults/test_woken.py::test_a_wake_up_for_nothing",),
    ),
    Scenario(
        76,
        "A run ends before its waiter is listened for",
        "The worker looks once it has subscribed.",
        ("faults/test_woken.py::test_the_run_ends_before_its_waiter_is_listened_for",),
    ),
    Scenario(
        77,
        "The worker that holds what waits is killed",
        "Another worker takes it up.",
        ("faults/test_woken.py::test_the_worker_that_holds_them_is_killed",),
    ),
    Scenario(
        78,
        "Two workers hold calls that wait for one key",
        "Each lets its own in, one first where the key is free.",
        ("faults/test_woken.py::test_two_workers_hold_those_that_wait",),
    ),
    Scenario(
        79,
        "The process is killed right after its end was recorded",
        "Those who wait were told in the same step.",
        ("faults/test_woken.py::test_the_process_is_killed_when_its_end_is_recorded",),
    ),
    Scenario(
        80,
        "A run ends while its worker, which holds what waits, has lost the broker",
        "What came over the old connection goes nowhere; it comes again.",
        ("faults/test_woken.py::test_the_broker_is_away_as_the_run_ends",),
    ),
    Scenario(
        82,
        "The result backend is away as an end is told: of a run, a limit, a revoke, a discard",
        "The message comes again, and its caller is told when the backend is back; nothing reruns.",
        (
            "faults/test_results_away.py::test_a_run_that_ends",
            "faults/test_results_away.py::test_a_run_that_meets_its_hard_limit",
            "faults/test_results_away.py::test_a_run_that_is_revoked",
            "faults/test_results_away.py::test_a_call_that_is_discarded",
        ),
    ),
    Scenario(
        83,
        "A process is told to end as it counts the last part of a chord",
        "It publishes the chord's body first.",
        (
            "faults/test_kills.py::test_a_process_that_is_told_to_end_as_it_counts_a_part_of_a_chord",
        ),
    ),
)

SCENARIOS = (*_THOUGHT_OF, *sorted(_FOUND_BY_USE, key=lambda scenario: scenario.number))

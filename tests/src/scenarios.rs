//! The scenarios. A name is a claim; its prefix is the promise it attacks (ARCHITECTURE.md).

use anyhow::Result;

pub mod credentials;
mod decisions;
mod detect;
mod enrol;
mod fail_closed;
mod floods;
mod identity;
mod inside;
mod life;
mod log;
mod mappings;
mod neighbours;
mod outward;
mod paths;
mod people;
mod policies;
mod renewal;
mod review;
mod roles;
mod same_bytes;
mod script_names;
mod secrets;
mod skipped;
mod sockets;
mod swaps;
pub mod units;
mod usage;

/// One scenario.
pub struct Scenario {
    /// Its name.
    pub name: &'static str,
    /// Seconds after which it has failed.
    pub limit: u64,
    /// Whether it begins with a daemon of its own configuration: then it does not matter what the one before left running.
    pub own: bool,
    /// What it does.
    pub run: fn() -> Result<()>,
}

macro_rules! scenarios {
    ($($name:ident in $module:ident, $limit:literal s $($own:ident)?;)*) => {
        /// Every scenario, in the order in which they run.
        pub const ALL: &[Scenario] = &[
            $(Scenario {
                name: stringify!($name),
                limit: $limit,
                own: !stringify!($($own)?).is_empty(),
                run: $module::$name,
            },)*
        ];
    };
}

scenarios! {
    governed_exec_runs_and_is_recorded in usage, 60 s;
    exit_codes_are_those_of_the_command in usage, 90 s;
    terminal_and_pipes_are_relayed in usage, 90 s;
    path_probes_are_folded in usage, 60 s;
    long_argv_is_judged_and_recorded in usage, 90 s;
    secrets_in_arguments_are_written_nowhere in secrets, 120 s;
    long_arguments_are_kept_whole_beside_the_log in secrets, 180 s own;
    p2_arguments_that_cannot_be_kept in secrets, 120 s;
    bad_policy_is_refused_with_line in usage, 120 s;
    p2_daemon_killed_while_held in fail_closed, 150 s;
    p2_daemon_stopped in fail_closed, 150 s;
    p2_no_daemon_no_exec in fail_closed, 150 s;
    p2_expired_session in fail_closed, 60 s;
    p2_unmarked_mount in fail_closed, 90 s;
    p2_mount_made_inside in fail_closed, 90 s;
    p2_cgroup_escape in fail_closed, 60 s;
    p2_clean_stop_closes_sessions in fail_closed, 120 s;
    p2_privileged_ways_out_as_user in outward, 120 s;
    p2_privileged_ways_out_as_root in outward, 120 s;
    p2_namespaces_denied in outward, 90 s;
    p2_namespaces_adopted in outward, 240 s own;
    p2_host_mounts_made_later_are_judged in outward, 90 s;
    p2_unix_sockets_outside in sockets, 150 s own;
    p2_network_rules in sockets, 120 s own;
    p2_start_files_are_not_changed in paths, 90 s;
    p2_root_does_not_change_what_the_system_runs in paths, 60 s;
    p2_credentials_are_read_by_named_programs_only in paths, 120 s own;
    p2_overlays_copy_up_and_lend_nothing in paths, 120 s;
    p2_deletions_beyond_the_budget_need_a_person in paths, 150 s own;
    p2_deletions_far_beyond_the_budget_kill_the_tree in paths, 120 s own;
    p2_session_outlives_the_daemon in life, 180 s;
    p2_only_its_guardctl_comes_again in life, 150 s;
    session_renewed_and_ended in renewal, 300 s own;
    p2_supervisor_killed_then_adopted in life, 150 s;
    p2_expiry_without_a_daemon in life, 150 s;
    p2_entry_ended_without_a_daemon in life, 150 s;
    p2_requests_and_scripts_outlive_the_daemon in life, 180 s;
    p2_upgrade_keeps_sessions in life, 240 s;
    p2_other_layout_ends_sessions in life, 150 s;
    p2_second_daemon_refuses in life, 120 s;
    terminal_outlives_the_daemon in life, 120 s;
    p6_daemon_and_supervisor_stopped in life, 150 s;
    p2_an_exec_whose_entry_was_not_seen in skipped, 180 s own;
    p3_argv_swap in same_bytes, 180 s;
    p3_file_swap_by_rename in same_bytes, 90 s;
    p3_file_swap_by_write in same_bytes, 90 s;
    p3_file_swap_from_outside in same_bytes, 90 s;
    p3_script_swap_by_write in same_bytes, 90 s;
    p3_script_swap_from_outside in same_bytes, 90 s;
    p3_script_name_turned in script_names, 180 s;
    p3_script_name_turned_behind_env in script_names, 180 s;
    p3_script_name_kept_then_free in script_names, 90 s;
    p3_ptrace in same_bytes, 60 s;
    bypass_file_changed_in_review in swaps, 200 s own;
    mappings_are_recorded in mappings, 90 s;
    strict_profile_refuses_mappings in mappings, 120 s own;
    p4_collector_killed_again_and_again in log, 180 s;
    p4_collector_absent_then_back in log, 180 s;
    p4_certificate_renewed_and_revoked in enrol, 240 s own;
    p5_older_copy_of_the_log_is_not_believed in log, 180 s;
    p6_neighbours in neighbours, 120 s;
    p7_identity in identity, 90 s;
    p7_initiator_does_not_approve in identity, 90 s;
    p7_roles_limit_a_session in roles, 240 s own;
    p7_child_sessions_may_less in inside, 300 s own;
    p7_child_sessions_expire_without_a_daemon in inside, 240 s own;
    policy_bundles_are_shadowed_then_enforced in policies, 240 s own;
    p7_decisions_are_signed in decisions, 240 s own;
    sigma_rules_add_to_the_verdict in detect, 150 s own;
    p8_kernel_support_is_shown in outward, 60 s;
    p8_status_is_measured in identity, 120 s;
    review_approved_runs in review, 60 s;
    review_denied_does_not_run in review, 60 s;
    review_timeout_denies in review, 120 s own;
    review_root_covers_descendants in review, 60 s;
    review_kinds_cover_like_acts in review, 120 s;
    review_after_hold_max_is_a_one_use_right in review, 150 s own;
    runtimes_live_through_a_minute_of_review in review, 300 s own;
    flood_of_execs_harms_no_other_session in floods, 240 s;
    flood_of_events_leaves_room_for_others in floods, 120 s;
    flood_of_acts_is_counted in floods, 120 s;
    flood_of_forks_ends_at_the_limit in floods, 120 s own;
    flood_of_records_leaves_room_for_others in floods, 180 s;
    p1_no_room_no_exec in log, 240 s;
    verifier_budget in neighbours, 30 s;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_limits_end() {
        let mut names: Vec<&str> = ALL.iter().map(|s| s.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ALL.len());
        assert!(ALL.iter().all(|s| (10..=300).contains(&s.limit)));
    }
}

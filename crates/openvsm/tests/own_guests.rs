//! The guests that the program carries.

mod common;

use common::{openvsm, stderr, stdout};
use serde_json::Value;

#[test]
fn the_demo_tells_its_story() {
    let output = openvsm(&["demo"]).output().unwrap();
    let story = stdout(&output);
    assert_eq!(output.status.code(), Some(0), "{story}{}", stderr(&output));
    for attack in ["read of GPA", "write of GPA", "execute of GPA"] {
        let stopped = |line: &str| line.contains("hypervisor  stopped") && line.contains(attack);
        assert!(story.lines().any(stopped), "no {attack} was stopped:\n{story}");
    }
    assert!(story.ends_with("demo passed\n"), "{story}");
}

/// Runs the suite; all that is skipped must be for want of processors. Returns the report.
fn suite(arguments: &[&str], cpus: u32) -> (Value, String) {
    let cpus_argument = cpus.to_string();
    let output = openvsm(&[&["conform", "--json", "--cpus", &cpus_argument], arguments].concat()).output().unwrap();
    let text = stdout(&output);
    let report: Value = serde_json::from_str(&text).unwrap();
    let checks = report["checks"].as_array().unwrap();
    let wrong = |check: &&Value| match check["result"].as_str() {
        Some("passed") => false,
        Some("skipped") => cpus >= 4 || !check["detail"].as_str().unwrap().starts_with("needs "),
        _ => true,
    };
    let wrong: Vec<_> = checks.iter().filter(wrong).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!((&report["engine"], &report["cpus"]), (&"soft".into(), &cpus.into()));
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    (report, text)
}

#[test]
fn the_suite_passes_on_one_processor() {
    assert!(suite(&[], 1).0["passed"].as_u64() >= Some(600));
}

#[test]
fn the_suite_passes_on_two_processors() {
    assert!(suite(&[], 2).0["passed"].as_u64() >= Some(670));
}

#[test]
fn the_suite_passes_on_four_processors() {
    assert!(suite(&[], 4).0["passed"].as_u64() >= Some(680));
}

#[test]
fn the_same_seed_gives_the_same_report() {
    // Interrupts, timers and messages of VTLs.
    let run = || suite(&["--deterministic=3", "--only", "15.12"], 2);
    let (first, second) = (run(), run());
    // With all times, which are counted in instructions.
    assert_eq!(first.1, second.1);
}

#[test]
fn the_suite_as_a_table() {
    let output = openvsm(&["conform"]).output().unwrap();
    let table = stdout(&output);
    assert!(table.starts_with("section "), "{table}");
    assert!(table.lines().last().unwrap().contains(" 0 failed"), "{table}");
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn stress_repeats_the_suite() {
    let output = openvsm(&["stress", "--times", "2", "--cpus", "1,2", "--only", "10.5"]).output().unwrap();
    let told = stdout(&output);
    assert_eq!(output.status.code(), Some(0), "{told}{}", stderr(&output));
    assert!(told.contains("round 2 of 2: passed") && told.contains("\n8 runs and "), "{told}");
}

#[test]
fn stress_ends_at_the_first_failure() {
    let output =
        openvsm(&["stress", "--times", "2", "--cpus", "1", "--only", "2.", "--vsm", "vtls=1"]).output().unwrap();
    let told = stdout(&output);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.starts_with("round 1: failed after 0 runs") && told.contains(" --engine soft --cpus 1\n"), "{told}");
}

#[test]
fn a_guest_without_a_second_vtl_does_not_pass_for_one_with() {
    let output = openvsm(&["demo", "--vsm", "vtls=1"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", stdout(&output));
    let output = openvsm(&["conform", "--vsm", "vtls=1"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", stdout(&output));
}

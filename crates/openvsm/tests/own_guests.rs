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

#[test]
fn the_suite_passes() {
    let output = openvsm(&["conform", "--json"]).output().unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let failed = |check: &&Value| check["result"] == "failed";
    let failed: Vec<_> = report["checks"].as_array().unwrap().iter().filter(failed).collect();
    assert!(failed.is_empty(), "{failed:#?}");
    assert!(report["passed"].as_u64() >= Some(120));
    assert_eq!((&report["engine"], &report["cpus"]), (&"soft".into(), &1.into()));
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
}

#[test]
fn the_suite_as_a_table() {
    let output = openvsm(&["conform", "--cpus", "2"]).output().unwrap();
    let table = stdout(&output);
    assert!(table.starts_with("section "), "{table}");
    assert!(table.lines().last().unwrap().contains(" 0 failed"), "{table}");
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn a_guest_without_a_second_vtl_does_not_pass_for_one_with() {
    let output = openvsm(&["demo", "--vsm", "vtls=1"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", stdout(&output));
    let output = openvsm(&["conform", "--vsm", "vtls=1"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", stdout(&output));
}

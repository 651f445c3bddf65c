//! The page of the book that lists the state of everything (`docs/src/coverage.md`), against the code.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use tlfs::{CallCode, RegisterName};

use crate::Config;
use crate::hypercall::is_offered;
use crate::registers::is_in_table;
use crate::testing::Guest;

const PAGE: &str = include_str!("../../../docs/src/coverage.md");

/// The rows of the table under a heading, as cells.
fn rows(heading: &str) -> Vec<Vec<&'static str>> {
    let (_, behind) = PAGE.split_once(&format!("\n## {heading}\n")).expect("a heading");
    let section = behind.split("\n## ").next().unwrap_or_default();
    let lines = section.lines().filter(|line| line.starts_with('|'));
    let cells = |line: &'static str| line.trim_matches('|').split('|').map(str::trim).collect();
    lines.skip(2).map(cells).collect()
}

/// What is in backquotes.
fn names(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

/// The names of a cell; "`a` to `b`" stands for all of `universe` between the two.
fn expand(cell: &'static str, universe: &[String]) -> Vec<String> {
    let position = |name: &str| universe.iter().position(|one| one == name).unwrap_or_else(|| panic!("no {name}"));
    let mut expanded = Vec::new();
    let parts: Vec<&str> = cell.split('`').collect();
    let mut from = None;
    for pair in parts[1..].chunks(2) {
        let (name, separator) = (pair[0], pair.get(1).copied().unwrap_or_default());
        let start = from.take().map_or(position(name), |last: usize| last + 1);
        expanded.extend_from_slice(&universe[start..=position(name)]);
        if separator == " to " {
            from = Some(position(name));
        }
    }
    expanded
}

/// Checks the two columns of names and state: every name is there once, and is done exactly if it `exists`.
fn check_states(heading: &str, universe: &[String], exists: impl Fn(&str) -> bool) {
    let mut listed = BTreeSet::new();
    for row in rows(heading) {
        let [what, state] = row[..] else { panic!("a row of {} cells: {row:?}", row.len()) };
        let done = state == "done";
        assert!(done || state.starts_with("not offered: "), "{state}");
        for name in expand(what, universe) {
            assert_eq!(exists(&name), done, "{name} is listed as {state}");
            assert!(listed.insert(name.clone()), "{name} is listed twice");
        }
    }
    let missing: Vec<_> = universe.iter().filter(|name| !listed.contains(*name)).collect();
    assert!(missing.is_empty(), "not in the table of {heading}: {missing:?}");
}

/// The names that an enumeration gives to numbers.
fn named<T: std::fmt::Debug>(numbers: impl Iterator<Item = u32>, make: impl Fn(u32) -> T) -> Vec<(String, u32)> {
    let names = numbers.map(|number| (format!("{:?}", make(number)), number));
    names.filter(|(name, _)| name.chars().all(char::is_alphanumeric) && !name.starts_with(char::is_numeric)).collect()
}

/// What `number` is, by a list from [`named`].
fn number(list: &[(String, u32)], name: &str) -> u32 {
    list.iter().find(|one| one.0 == name).expect("a name").1
}

fn only_names(list: &[(String, u32)]) -> Vec<String> {
    list.iter().map(|one| one.0.clone()).collect()
}

#[test]
fn every_hypercall_is_listed_with_its_state() {
    let calls = named(0..0x1_0000, |code| CallCode(code as u16));
    assert!(calls.len() > 100, "{}", calls.len());
    check_states("Hypercalls", &only_names(&calls), |name| is_offered(CallCode(number(&calls, name) as u16)));
}

#[test]
fn every_register_is_listed_with_its_state() {
    let registers = named(0..0xE_0010, RegisterName);
    assert!(registers.len() > 300, "{}", registers.len());
    check_states("Registers by name", &only_names(&registers), |name| {
        is_in_table(RegisterName(number(&registers, name)))
    });
}

#[test]
fn every_model_specific_register_is_listed_with_its_state() {
    let guest = Guest::new(Config { vtls: 2, ..Config::default() });
    let (mut done, mut missing) = (BTreeSet::new(), BTreeSet::new());
    let parse = |text: &str| u32::from_str_radix(text.trim_start_matches("0x"), 16).expect("a number");
    for row in rows("Model-specific registers") {
        let list = if row[1] == "done" { &mut done } else { &mut missing };
        let mut parts = row[0].split('`');
        parts.next();
        let mut from = None;
        while let (Some(name), Some(separator)) = (parts.next(), parts.next()) {
            let last = parse(name);
            list.extend(from.take().unwrap_or(last)..=last);
            if separator == " to " {
                from = Some(last);
            }
        }
    }
    // Write-only registers fault on reads, so that what is done need not be readable.
    for index in (0x4000_0000..0x4000_2000).chain([0x000D_0006]) {
        let readable = guest.read_msr(0, index).is_some();
        assert!(!readable || done.contains(&index), "{index:#x} is not listed as done");
        assert!(!readable || !missing.contains(&index), "{index:#x} is there");
    }
}

#[test]
fn every_bit_of_cpuid_is_listed_with_its_state() {
    let guest = Guest::new(Config { vtls: 2, x2apic: true, ..Config::default() });
    let leaves = guest.partition.cpuid();
    let (mut done, mut clear) = (BTreeSet::new(), BTreeSet::new());
    for row in rows("CPUID") {
        match row[1] {
            "done" => done.extend(names(row[0])),
            _ => clear.extend(names(row[0])),
        }
    }
    for leaf in leaves.iter().filter(|leaf| [3, 4, 6].contains(&(leaf.leaf & 0xF))) {
        for (value, register) in leaf.result.into_iter().zip(["EAX", "EBX", "ECX", "EDX"]) {
            for bit in 0..32 {
                let name = format!("{}.{register}.{bit}", leaf.leaf & 0xF);
                let set = value >> bit & 1 != 0;
                // The spin count and the address width are numbers.
                let number = leaf.leaf & 0xF == 4 && register != "EAX";
                assert!(number || !set || done.contains(&*name), "{name} is set and not listed as done");
                assert!(set || !done.contains(&*name), "{name} is listed as done and clear");
                assert!(!set || !clear.contains(&*name), "{name} is set and listed as not offered");
            }
        }
    }
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The Rust sources below a directory.
fn sources(directory: &Path) -> Vec<String> {
    let mut sources = Vec::new();
    for entry in fs::read_dir(directory).expect("a directory").flatten() {
        let path = entry.path();
        if path.is_dir() && path.file_name().is_some_and(|name| name != "target") {
            sources.extend(self::sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            sources.push(fs::read_to_string(&path).expect("a source"));
        }
    }
    sources
}

/// The names of all unit tests.
fn unit_tests() -> BTreeSet<String> {
    let mut tests = BTreeSet::new();
    for source in sources(&repository().join("crates")) {
        let mut attribute = false;
        for line in source.lines().map(str::trim) {
            attribute |= line == "#[test]";
            if let Some((_, function)) = line.split_once("fn ").filter(|_| attribute) {
                let name = function.split(|letter: char| !letter.is_alphanumeric() && letter != '_').next();
                tests.extend(name.map(String::from));
                attribute = false;
            }
        }
    }
    tests
}

/// All guest checks: name and section.
fn guest_checks() -> Vec<(String, String)> {
    let mut checks = Vec::new();
    for source in sources(&repository().join("guests/conformance/src/checks")) {
        for line in source.lines() {
            let entry = line.trim().strip_prefix('"').and_then(|line| line.strip_suffix(',')?.split_once("\" "));
            checks.extend(entry.map(|(section, name)| (name.into(), section.into())));
        }
    }
    checks
}

#[test]
fn every_rule_has_its_tests() {
    let (units, checks) = (unit_tests(), guest_checks());
    let known: BTreeSet<_> = checks.iter().map(|check| &*check.0).collect();
    let rules = rows("Rules of VSM");
    let mut sections = BTreeSet::new();
    for row in &rules {
        let [section, rule, unit, guest, engines] = row[..] else { panic!("a row of {} cells: {row:?}", row.len()) };
        sections.extend(section.split(", "));
        assert!(!engines.is_empty(), "{rule}");
        assert!(names(unit).next().is_some(), "no unit test for: {rule}");
        assert!(names(guest).next().is_some() || guest.starts_with("none: "), "no check for: {rule}");
        names(unit).for_each(|name| assert!(units.contains(name), "there is no unit test {name}"));
        names(guest).for_each(|name| assert!(known.contains(name), "there is no guest check {name}"));
    }
    for (name, section) in checks.iter().filter(|check| check.1.starts_with("15.")) {
        let listed = sections.iter().any(|listed| *listed == section || section.starts_with(&format!("{listed}.")));
        assert!(listed, "no rule of section {section}, which {name} checks");
    }
}

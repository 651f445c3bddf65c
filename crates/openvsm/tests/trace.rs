//! Traces of guests.

mod common;

use common::{Directory, openvsm, run, stderr, stdout, text};

/// mov al, 0; out 0xf4, al
const EXIT: [u8; 4] = [0xB0, 0, 0xE6, 0xF4];

#[test]
fn a_trace_is_written_and_summarized() {
    let directory = Directory::new();
    let path = directory.path("trace.json");
    std::fs::write(&path, "what was there before, longer than nothing").unwrap();
    assert_eq!(run(&EXIT, &["--trace", &text(&path)]).status.code(), Some(1));
    let trace: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    let events = trace["traceEvents"].as_array().unwrap();
    let active = events.iter().find(|event| event["cat"] == "switch").unwrap();
    assert_eq!((&active["name"], &active["pid"], &active["tid"]), (&"start".into(), &0.into(), &0.into()));
    assert!(active["dur"].as_f64().unwrap() > 0.0);
    assert!(events.iter().any(|event| event["ph"] == "M" && event["args"]["name"] == "VTL0"));

    let summary = openvsm(&["trace", "summary", &text(&path)]).output().unwrap();
    assert_eq!(summary.status.code(), Some(0), "{}", stderr(&summary));
    assert!(
        stdout(&summary).lines().any(|line| line.contains("start") && line.contains(" 1 ")),
        "{}",
        stdout(&summary)
    );
}

#[test]
fn what_is_not_a_trace_is_refused() {
    let directory = Directory::new();
    let bad = directory.write("bad", b"{\"traceEvents\":7}");
    let missing = directory.path("missing");
    for path in [&*bad, &text(&missing)] {
        let output = openvsm(&["trace", "summary", path]).output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        let line = stderr(&output);
        assert!(
            line.contains(path) && line.contains("openvsm run --trace") && line.matches('\n').count() == 1,
            "{line}"
        );
    }
    let output = run(&EXIT, &["--trace", "/no/such/place"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("--trace /no/such/place"), "{}", stderr(&output));
}

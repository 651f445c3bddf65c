//! `openvsm trace summary`: how often things happened in a trace, and how long they took.

use std::collections::BTreeMap;
use std::path::Path;

use super::event::{Category, Trace};
use crate::failure::Failure;
use crate::{Status, table};

/// Prints counts, and percentiles of latencies in microseconds.
pub fn run(path: &Path) -> Status {
    let bad = |problem: String| {
        let advice = "give a file that openvsm run --trace wrote";
        Failure::bad_input(format!("trace summary {}", path.display()), format!("{problem}; {advice}"))
    };
    let text = std::fs::read_to_string(path).map_err(|error| bad(error.to_string()))?;
    let trace: Trace<'_> = serde_json::from_str(&text).map_err(|error| bad(error.to_string()))?;
    for line in table::lines(&rows(&trace), &[2, 3, 4, 5, 6]) {
        println!("{line}");
    }
    match trace.other_data.lost_events {
        0 => {}
        lost => println!("{lost} older events were dropped from the trace"),
    }
    Ok(0)
}

fn rows(trace: &Trace<'_>) -> Vec<Vec<String>> {
    let mut groups: BTreeMap<(Category, &str), Vec<f64>> = BTreeMap::new();
    for (category, name, duration) in trace.trace_events.iter().filter_map(|event| event.as_slice()) {
        groups.entry((category, name)).or_default().push(duration);
    }
    let header = ["what", "name", "count", "p50 us", "p90 us", "p99 us", "max us"];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    for ((category, name), mut durations) in groups {
        durations.sort_by(f64::total_cmp);
        let what = match category {
            Category::Switch => "in VTL after",
            Category::Hypercall => "hypercall",
            Category::Intercept => "intercept",
            Category::Interrupt => "interrupt",
            Category::Wait => "time in which it",
            Category::Other => "other",
        };
        let mut row = vec![what.to_owned(), name.to_owned(), durations.len().to_string()];
        row.extend([0.5, 0.9, 0.99, 1.0].map(|part| format!("{:.3}", percentile(&durations, part))));
        rows.push(row);
    }
    rows
}

/// The smallest of some sorted values that a part of them does not exceed.
fn percentile(sorted: &[f64], part: f64) -> f64 {
    let rank = (part * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_occurred() {
        let sorted = [1.0, 2.0, 3.0, 4.0];
        assert_eq!([0.5, 0.9, 0.99, 1.0].map(|part| percentile(&sorted, part)), [2.0, 4.0, 4.0, 4.0]);
        assert_eq!(percentile(&[], 0.5), 0.0);
    }

    #[test]
    fn slices_are_grouped() {
        let text = r#"{"traceEvents":[
            {"name":"process_name","ph":"M","pid":0,"args":{"name":"VP 0"}},
            {"name":"VTL call","ph":"X","cat":"switch","pid":0,"tid":1,"ts":1.0,"dur":2.0},
            {"name":"VTL call","ph":"X","cat":"switch","pid":0,"tid":1,"ts":5.0,"dur":4.0},
            {"name":"x","ph":"X","cat":"elsewhere","ts":5.0,"dur":4.0}],"otherData":{"lostEvents":3}}"#;
        let trace: Trace<'_> = serde_json::from_str(text).unwrap();
        let rows = rows(&trace);
        assert_eq!(rows[1], ["in VTL after", "VTL call", "2", "2.000", "4.000", "4.000", "4.000"]);
        assert_eq!(rows.len(), 3);
        assert_eq!(trace.other_data.lost_events, 3);
    }
}

//! An event of a trace file, as the trace event format has it: processes are VPs, threads are VTLs, times are in
//! microseconds.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use vsm::Vtl;

/// What an event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Category {
    /// A VTL was active; the name says why it was entered.
    Switch,
    /// A hypercall.
    Hypercall,
    /// An access was intercepted.
    Intercept,
    /// The VTL got an interrupt.
    Interrupt,
    /// The VP did not execute; the name says why.
    Wait,
    /// Anything else, of whatever made the file.
    #[serde(other)]
    Other,
}

/// An event.
#[derive(Debug, Serialize, Deserialize)]
pub struct Event<'a> {
    name: Cow<'a, str>,
    #[serde(rename = "ph")]
    phase: Cow<'a, str>,
    #[serde(rename = "cat", default, skip_serializing_if = "Option::is_none")]
    category: Option<Category>,
    #[serde(rename = "pid", default)]
    vp: u32,
    #[serde(rename = "tid", default)]
    vtl: u32,
    #[serde(rename = "ts", default, skip_serializing_if = "Option::is_none")]
    start: Option<f64>,
    #[serde(rename = "dur", default, skip_serializing_if = "Option::is_none")]
    duration: Option<f64>,
    #[serde(rename = "args", default, skip_serializing_if = "Option::is_none")]
    arguments: Option<Value>,
}

/// The phase of an event with a beginning and an end.
const COMPLETE: &str = "X";
/// The phase of an event that describes a track.
const METADATA: &str = "M";

impl Event<'_> {
    /// Something that began at the first and took the second of `time`.
    pub fn slice(
        category: Category,
        name: Cow<'static, str>,
        vp: u32,
        vtl: Vtl,
        time: (f64, f64),
        arguments: Option<Value>,
    ) -> Self {
        Self {
            name,
            phase: COMPLETE.into(),
            category: Some(category),
            vp,
            vtl: vtl.number().into(),
            start: Some(time.0),
            duration: Some(time.1),
            arguments,
        }
    }

    /// The name of a track.
    pub fn name(kind: &'static str, vp: u32, vtl: Vtl, name: String) -> Self {
        Self {
            name: kind.into(),
            phase: METADATA.into(),
            category: None,
            vp,
            vtl: vtl.number().into(),
            start: None,
            duration: None,
            arguments: Some(json!({ "name": name })),
        }
    }

    /// Category, name and duration in microseconds of something that took time.
    pub fn as_slice(&self) -> Option<(Category, &str, f64)> {
        (self.phase == COMPLETE).then_some(())?;
        Some((self.category?, &self.name, self.duration?))
    }
}

/// A file of events.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Trace<'a> {
    /// The events, in no particular order.
    #[serde(borrow)]
    pub trace_events: Vec<Event<'a>>,
    /// What else the file says.
    #[serde(default)]
    pub other_data: OtherData,
}

/// What a file says besides its events.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OtherData {
    /// Events that were dropped because there were too many.
    #[serde(default)]
    pub lost_events: u64,
}

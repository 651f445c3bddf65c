//! Traces: what VPs do over time, in the format of Chrome's trace viewer and of Perfetto, with a track for every VP and
//! VTL.

mod event;
mod summary;

use std::borrow::Cow;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::iter;
use std::sync::{Arc, Mutex, PoisonError};

use engine::{AccessKind, Clock, Event, MemoryFault, RegisterAccess};
use serde_json::json;
use tlfs::{CallCode, HvStatus};
use vsm::{Observation, Observed, Observer, SwitchReason, VpActivity, Vtl};

use event::{self as trace, Category};
pub use summary::run as summarize;

/// Most events that are kept of all VPs together; the oldest make way. About 64 MiB.
const MOST_EVENTS: usize = 1 << 20;

/// Records what the rules observe, in bounded memory.
pub struct Tracer {
    clock: Arc<dyn Clock>,
    /// By VP. Each is locked by its VP's thread, and by others only when the trace is written.
    tracks: Box<[Mutex<Track>]>,
    most: usize,
}

/// Something that took from `start` to `end`, in ticks of the clock. There are many of them, so they are small.
#[derive(Debug, Clone, Copy)]
struct Record {
    start: u64,
    end: u64,
    vtl: Vtl,
    what: Recorded,
}

#[derive(Debug, Clone, Copy)]
enum Recorded {
    /// The VTL was active; it was entered for this reason, `None` if it was so from the start.
    Active(Option<SwitchReason>),
    /// The VP did not execute.
    Waited(VpActivity),
    Hypercall {
        code: CallCode,
        control: u64,
        status: Option<HvStatus>,
        reps: u16,
    },
    MemoryIntercept {
        to: Vtl,
        kind: AccessKind,
        gpa: u64,
        gva: Option<u64>,
    },
    StartupIntercept {
        to: Vtl,
        target: u32,
    },
    RegisterIntercept {
        to: Vtl,
        access: RegisterAccess,
    },
    Interrupt(Event),
}

/// What a VP did.
struct Track {
    records: VecDeque<Record>,
    /// Records that made way.
    lost: u64,
    /// The active VTL, since when, and why it was entered.
    active: (Vtl, u64, Option<SwitchReason>),
    /// Why the VP does not execute, if so, in which VTL, and since when.
    waiting: Option<(Vtl, u64, VpActivity)>,
}

impl Track {
    /// Room for `most` records, which the host provides now: in the guest's time it would cost as much as the rest.
    fn new(now: u64, most: usize) -> Self {
        let active = (Vtl::ZERO, now, None);
        let mut records = VecDeque::new();
        records.resize(most, Record { start: now, end: now, vtl: Vtl::ZERO, what: Recorded::Active(None) });
        records.clear();
        Self { records, lost: 0, active, waiting: Some((Vtl::ZERO, now, VpActivity::NotStarted)) }
    }

    /// What has begun and not ended yet.
    fn unfinished(&self, now: u64) -> impl Iterator<Item = Record> {
        let (vtl, start, reason) = self.active;
        let active = Record { start, end: now, vtl, what: Recorded::Active(reason) };
        iter::once(active).chain(self.wait_until(now))
    }

    /// The time that the VP has waited until now.
    fn wait_until(&self, now: u64) -> Option<Record> {
        let (vtl, start, activity) = self.waiting?;
        Some(Record { start, end: now, vtl, what: Recorded::Waited(activity) })
    }
}

impl Tracer {
    /// A tracer of as many VPs.
    pub fn new(clock: Arc<dyn Clock>, vps: u32) -> Self {
        let now = clock.tsc();
        let most = (MOST_EVENTS / vps.max(1) as usize).max(1);
        Self { clock, tracks: (0..vps).map(|_| Mutex::new(Track::new(now, most))).collect(), most }
    }

    /// Writes what was recorded.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write(&self, file: &File) -> io::Result<()> {
        let mut output = BufWriter::new(file);
        let now = self.clock.tsc();
        let mut lost = 0;
        output.write_all(b"{\"traceEvents\":[\n")?;
        let mut first = true;
        let mut put = |output: &mut BufWriter<_>, event: &trace::Event<'_>| {
            if !std::mem::take(&mut first) {
                output.write_all(b",\n")?;
            }
            serde_json::to_writer(output, event).map_err(io::Error::from)
        };
        for (track, vp) in self.tracks.iter().zip(0..) {
            let track = track.lock().unwrap_or_else(PoisonError::into_inner);
            lost += track.lost;
            put(&mut output, &trace::Event::name("process_name", vp, Vtl::ZERO, format!("VP {vp}")))?;
            let mut named = tlfs::VtlSet::EMPTY;
            for record in track.records.iter().copied().chain(track.unfinished(now)) {
                if !named.contains(record.vtl) {
                    named = named.with(record.vtl);
                    put(&mut output, &trace::Event::name("thread_name", vp, record.vtl, record.vtl.to_string()))?;
                }
                put(&mut output, &self.event(vp, &record))?;
            }
        }
        writeln!(output, "\n],\"displayTimeUnit\":\"ns\",\"otherData\":{}}}", json!({ "lostEvents": lost }))?;
        output.flush()
    }

    fn keep(&self, track: &mut Track, record: Record) {
        if track.records.len() == self.most {
            track.records.pop_front();
            track.lost += 1;
        }
        track.records.push_back(record);
    }

    fn event(&self, vp: u32, record: &Record) -> trace::Event<'static> {
        let microseconds = |ticks: u64| ticks as f64 * 1e6 / self.clock.tsc_frequency() as f64;
        let start = microseconds(record.start);
        let duration = microseconds(record.end.saturating_sub(record.start));
        let (category, name, arguments) = match record.what {
            Recorded::Active(reason) => (Category::Switch, reason.map_or("start", reason_name).into(), None),
            Recorded::Hypercall { code, control, status, reps } => (
                Category::Hypercall,
                format!("{code:?}").into(),
                Some(json!({
                    "control": format!("{control:#x}"),
                    "status": status.map(|status| format!("{status:?}")),
                    "reps": reps,
                })),
            ),
            Recorded::MemoryIntercept { to, kind, gpa, gva } => (
                Category::Intercept,
                format!("{kind:?}").into(),
                Some(json!({
                    "to": to.to_string(),
                    "gpa": format!("{gpa:#x}"),
                    "gva": gva.map(|gva| format!("{gva:#x}")),
                })),
            ),
            Recorded::StartupIntercept { to, target } => {
                (Category::Intercept, "start-up".into(), Some(json!({ "to": to.to_string(), "target": target })))
            }
            Recorded::RegisterIntercept { to, access } => (
                Category::Intercept,
                access.register.to_string().into(),
                Some(json!({ "to": to.to_string(), "access": access.to_string() })),
            ),
            Recorded::Interrupt(event) => (Category::Interrupt, event_name(event), None),
            Recorded::Waited(activity) => (Category::Wait, activity_name(activity).into(), None),
        };
        trace::Event::slice(category, name, vp, record.vtl, (start, duration), arguments)
    }
}

impl Observer for Tracer {
    fn observe(&self, observation: &Observation) {
        let Observation { now, vp, vtl, what } = *observation;
        let Some(track) = self.tracks.get(vp as usize) else { return };
        let mut track = track.lock().unwrap_or_else(PoisonError::into_inner);
        let mut end = now;
        let what = match what {
            Observed::Switch { to, reason } => {
                let (_, start, entered) = std::mem::replace(&mut track.active, (to, now, Some(reason)));
                return self.keep(&mut track, Record { start, end, vtl, what: Recorded::Active(entered) });
            }
            Observed::Activity(activity) => {
                let waited = track.wait_until(now);
                track.waiting = (activity != VpActivity::Running).then_some((vtl, now, activity));
                return waited.into_iter().for_each(|waited| self.keep(&mut track, waited));
            }
            Observed::Hypercall { code, control, status, reps } => {
                // It is observed when it is done, with the time at which it began.
                end = self.clock.tsc();
                Recorded::Hypercall { code, control, status, reps }
            }
            Observed::MemoryIntercept { to, fault: MemoryFault { kind, gpa, gva, .. } } => {
                Recorded::MemoryIntercept { to, kind, gpa, gva }
            }
            Observed::StartupIntercept { to, target } => Recorded::StartupIntercept { to, target },
            Observed::RegisterIntercept { to, access } => Recorded::RegisterIntercept { to, access },
            Observed::Interrupt(event) => Recorded::Interrupt(event),
        };
        self.keep(&mut track, Record { start: now, end, vtl, what });
    }
}

/// How a reason for which a VTL is entered is named in traces.
const fn reason_name(reason: SwitchReason) -> &'static str {
    match reason {
        SwitchReason::Call => "VTL call",
        SwitchReason::Return { fast: false } => "VTL return",
        SwitchReason::Return { fast: true } => "fast VTL return",
        SwitchReason::Interrupt => "interrupt",
        SwitchReason::Intercept => "intercept",
    }
}

/// How an interrupt is named in traces.
fn event_name(event: Event) -> Cow<'static, str> {
    match event {
        Event::Interrupt { vector } => format!("vector {vector:#x}").into(),
        Event::Nmi => "NMI".into(),
        Event::Exception { vector, .. } => format!("exception {vector}").into(),
        Event::SoftwareInterrupt { vector, .. } => format!("INT {vector:#x}").into(),
    }
}

/// How it is said in traces what a VP does.
const fn activity_name(activity: VpActivity) -> &'static str {
    match activity {
        VpActivity::NotStarted => "waits to be started",
        VpActivity::Running => "runs",
        VpActivity::Halted => "is halted",
        VpActivity::Idle => "is idle",
        VpActivity::Suspended => "is suspended",
        VpActivity::WaitsForTlbLock => "waits for a TLB lock",
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek};

    use machine::HostClock;
    use vsm::SwitchReason;

    use super::*;

    fn observed(tracer: &Tracer, now: u64, vtl: Vtl, what: Observed) {
        tracer.observe(&Observation { now, vp: 0, vtl, what });
    }

    fn call(to: u8) -> Observed {
        Observed::Switch { to: Vtl::from_bits(to), reason: SwitchReason::Call }
    }

    #[test]
    fn the_oldest_events_make_way() {
        let mut tracer = Tracer::new(Arc::new(HostClock::start()), 1);
        tracer.most = 2;
        for round in 0..5 {
            observed(&tracer, 10 * round, Vtl::from_bits(round as u8 & 1), call(1 - (round as u8 & 1)));
        }
        observed(&tracer, 50, Vtl::from_bits(15), Observed::Switch { to: Vtl::ZERO, reason: SwitchReason::Interrupt });
        tracer.observe(&Observation { now: 0, vp: 7, vtl: Vtl::ZERO, what: call(1) });
        let track = tracer.tracks[0].lock().unwrap();
        assert_eq!(track.lost, 4);
        let times: Vec<_> = track.records.iter().map(|record| (record.start, record.end)).collect();
        assert_eq!(times, [(30, 40), (40, 50)]);
    }

    #[test]
    fn every_vtl_that_was_active_has_a_track() {
        let tracer = Tracer::new(Arc::new(HostClock::start()), 1);
        observed(&tracer, 1_000, Vtl::ZERO, call(1));
        observed(&tracer, 3_000, Vtl::from_bits(1), call(2));
        let mut file = tempfile();
        tracer.write(&file).unwrap();
        let mut text = String::new();
        file.rewind().unwrap();
        file.read_to_string(&mut text).unwrap();
        let trace: event::Trace<'_> = serde_json::from_str(&text).unwrap();
        let slices: Vec<_> =
            trace.trace_events.iter().filter_map(trace::Event::as_slice).map(|slice| slice.1).collect();
        assert_eq!(slices, ["start", "VTL call", "VTL call", "waits to be started"]);
        assert_eq!(text.matches("thread_name").count(), 3);
    }

    #[test]
    fn waits_are_told_when_they_are_over() {
        let tracer = Tracer::new(Arc::new(HostClock::start()), 1);
        tracer.tracks[0].lock().unwrap().waiting = None;
        let interrupt = Event::Interrupt { vector: 0x30 };
        observed(&tracer, 100, Vtl::ZERO, Observed::Activity(VpActivity::Halted));
        observed(&tracer, 250, Vtl::ZERO, Observed::Interrupt(interrupt));
        observed(&tracer, 250, Vtl::ZERO, Observed::Activity(VpActivity::Running));
        let track = tracer.tracks[0].lock().unwrap();
        let events = track.records.iter().map(|record| (record.start, record.end, tracer.event(0, record)));
        let events: Vec<_> =
            events.map(|(start, end, event)| (start, end, event.as_slice().unwrap().1.to_owned())).collect();
        assert_eq!(events, [(250, 250, "vector 0x30".to_owned()), (100, 250, "is halted".to_owned())]);
        assert_eq!(track.waiting, None);
    }

    fn tempfile() -> File {
        let path = std::env::temp_dir().join(format!("openvsm-trace-{}", std::process::id()));
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
        std::fs::remove_file(path).unwrap();
        file
    }
}

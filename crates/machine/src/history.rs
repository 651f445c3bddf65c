//! The last exits of a VP, for the report of a guest that died.

use std::fmt;
use std::mem::discriminant;

use engine::{AccessKind, Exit, MemoryFault};
use tlfs::Vtl;

/// Exits that are remembered.
const LENGTH: usize = 32;

/// An exit, and how often its kind came again from the same place before another exit came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Past {
    /// When it came last, in ticks of the clock.
    pub time: u64,
    /// The VTL that left the guest.
    pub vtl: Vtl,
    /// RIP at the exit.
    pub rip: u64,
    /// The last exit from this place.
    pub exit: Exit,
    /// How many there were.
    pub count: u64,
}

/// A ring of the last exits. Recording is cheap: it happens at every exit.
#[derive(Debug)]
pub(crate) struct History {
    ring: [Option<Past>; LENGTH],
    newest: usize,
}

impl History {
    pub(crate) const fn new() -> Self {
        Self { ring: [None; LENGTH], newest: 0 }
    }

    pub(crate) fn record(&mut self, time: u64, vtl: Vtl, rip: u64, exit: &Exit) {
        if let Some(last) = &mut self.ring[self.newest]
            && (last.rip, last.vtl) == (rip, vtl)
            && discriminant(&last.exit) == discriminant(exit)
        {
            last.time = time;
            last.exit = *exit;
            last.count = last.count.saturating_add(1);
            return;
        }
        self.newest = (self.newest + 1) % LENGTH;
        self.ring[self.newest] = Some(Past { time, vtl, rip, exit: *exit, count: 1 });
    }

    /// Oldest first.
    pub(crate) fn list(&self) -> Vec<Past> {
        let (newer, older) = self.ring.split_at(self.newest + 1);
        older.iter().chain(newer).flatten().copied().collect()
    }
}

/// Shows an exit as one readable phrase.
pub(crate) struct Phrase<'a>(pub(crate) &'a Exit);

impl fmt::Display for Phrase<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self.0 {
            Exit::Hypercall { .. } => formatter.write_str("hypercall"),
            Exit::IoRead { port, size } => write!(formatter, "in {} from port {port:#x}", Width(size)),
            Exit::IoWrite { port, size, value } => {
                write!(formatter, "out {} {value:#x} to port {port:#x}", Width(size))
            }
            Exit::MmioRead { gpa, size } => write!(formatter, "read {} at GPA {gpa:#x}, no memory there", Width(size)),
            Exit::MmioWrite { gpa, size, value } => {
                write!(formatter, "write {} {value:#x} at GPA {gpa:#x}, no memory there", Width(size))
            }
            Exit::ReadMsr { index } => write!(formatter, "rdmsr {index:#x}"),
            Exit::WriteMsr { index, value } => write!(formatter, "wrmsr {index:#x}, {value:#x}"),
            Exit::TaskPriority => formatter.write_str("mov to cr8"),
            Exit::MemoryFault(MemoryFault { gpa, gva, kind, user, page_walk, .. }) => {
                let kind = match kind {
                    AccessKind::Read => "read",
                    AccessKind::Write => "write",
                    AccessKind::Execute => "execute",
                };
                write!(formatter, "denied {}-mode {kind} of GPA {gpa:#x}", if user { "user" } else { "kernel" })?;
                if let Some(gva) = gva {
                    write!(formatter, " ({} {gva:#x})", if page_walk { "page walk for" } else { "at" })?;
                }
                Ok(())
            }
            Exit::RegisterAccess(access) => write!(formatter, "intercepted {access}"),
            Exit::Halt => formatter.write_str("hlt"),
            Exit::InterruptWindow => formatter.write_str("interrupts can be delivered"),
            Exit::Interrupted => formatter.write_str("interrupted"),
            Exit::Shutdown => formatter.write_str("triple fault"),
        }
    }
}

struct Width(u8);

impl fmt::Display for Width {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            1 => formatter.write_str("byte"),
            2 => formatter.write_str("word"),
            4 => formatter.write_str("dword"),
            8 => formatter.write_str("qword"),
            bytes => write!(formatter, "{bytes} bytes"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_exits_are_kept_in_order() {
        let mut history = History::new();
        assert!(history.list().is_empty());
        for rip in 0..100 {
            history.record(rip, Vtl::ZERO, rip, &Exit::Halt);
        }
        let rips: Vec<_> = history.list().iter().map(|past| past.rip).collect();
        assert_eq!(rips, (100 - LENGTH as u64..100).collect::<Vec<_>>());
    }

    #[test]
    fn repeated_exits_take_one_place() {
        let mut history = History::new();
        history.record(1, Vtl::ZERO, 0x10, &Exit::IoWrite { port: 0x3F8, size: 1, value: 65 });
        history.record(2, Vtl::ZERO, 0x10, &Exit::IoWrite { port: 0x3F8, size: 1, value: 66 });
        history.record(3, Vtl::ZERO, 0x10, &Exit::Shutdown);
        history.record(3, Vtl::new(1).unwrap(), 0x10, &Exit::Shutdown);
        let list = history.list();
        assert_eq!(list.len(), 3);
        assert_eq!((list[0].count, list[0].time), (2, 2));
        assert_eq!(Phrase(&list[0].exit).to_string(), "out byte 0x42 to port 0x3f8");
    }
}

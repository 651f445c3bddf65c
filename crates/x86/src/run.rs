//! The run loop: what is executed, what interrupts it, and when it ends.

use std::sync::atomic::{Ordering, fence};

use engine::{Event, Exit};

use crate::Cpu;
use crate::block::BlockCache;
use crate::flags::{Flags, bit};
use crate::op::Op;
use crate::stop::{Stop, StopReason, vector};

impl Cpu {
    /// Runs the guest until something needs the owner. Events injected and accesses completed since the last exit
    /// take effect first.
    pub fn run(&mut self) -> Exit {
        self.update_bus();
        self.update_mode();
        self.flags = Flags::from_register(self.general.rflags);
        if !self.external.in_progress(self.general.rip) {
            self.external.finish();
        }
        // The cache is apart while code of it executes, which then cannot change it.
        let mut blocks = self.blocks.take().unwrap_or_default();
        self.begin_watch();
        let exit = loop {
            let retired = self.instructions;
            if let Some(exit) = self.turn(&mut blocks) {
                break exit;
            }
            self.count_stall(retired);
        };
        self.blocks = Some(blocks);
        self.complete_flags();
        self.describe_instruction(exit)
    }

    /// Does what comes next: an event, one instruction, or a stretch of them. Returns the exit, if any.
    fn turn(&mut self, blocks: &mut BlockCache) -> Option<Exit> {
        if self.external.in_progress(self.general.rip) && !self.external.for_event {
            return self.step(blocks);
        }
        if self.kick.load(Ordering::Relaxed) && self.kick.swap(false, Ordering::AcqRel) {
            return Some(Exit::Interrupted);
        }
        if self.pending == Some(Event::Nmi) && self.nmi_blocked {
            (self.pending, self.nmi_waiting) = (None, true);
        } else if self.pending.is_none() && self.nmi_waiting && !self.nmi_blocked {
            (self.pending, self.nmi_waiting) = (Some(Event::Nmi), false);
        }
        if let Some(event) = self.pending {
            return self.deliver_pending(event);
        }
        if self.window_wanted && self.interruptible() {
            return Some(Exit::InterruptWindow);
        }
        let budget = self.budget();
        if budget == 0 || self.is_late() {
            return Some(Exit::Interrupted);
        }
        let singly = self.interrupt_shadow
            || self.steps_singly()
            || self.general.rflags & bit::RF != 0
            || budget < crate::decode::MOST_INSTRUCTIONS as u64;
        if singly { self.step(blocks) } else { self.run_blocks(blocks) }
    }

    fn deliver_pending(&mut self, event: Event) -> Option<Exit> {
        self.complete_flags();
        self.external.begin();
        let result = self.deliver(event);
        self.flags = Flags::from_register(self.general.rflags);
        match (result, self.stop) {
            (Err(Stop), StopReason::Exit(exit) | StopReason::ExitAfter(exit)) => {
                self.external.suspend(self.general.rip, true);
                Some(exit)
            }
            _ => {
                self.external.finish();
                None
            }
        }
    }

    /// Executes blocks until something else is to be done.
    fn run_blocks(&mut self, blocks: &mut BlockCache) -> Option<Exit> {
        let last = self.undisturbed(crate::decode::MOST_INSTRUCTIONS as u64);
        // The block that came before, which may be linked to the next one, and where it started.
        let mut previous: Option<(u32, u64)> = None;
        loop {
            let rip = self.general.rip;
            let Ok(number) = self.find_block(blocks) else {
                return self.stopped(None);
            };
            if let Some((from, start)) = previous
                && self.links_blocks()
            {
                let base = self.code_base();
                // Outside 64-bit mode the same RIP is another address when CS changes.
                let epoch = (self.mode.code_size == 8).then_some(self.fetch_epoch);
                blocks.link(from, base.wrapping_add(start), number, base.wrapping_add(rip), rip, epoch);
            }
            let mut current = (number, blocks.get(number)?);
            previous = loop {
                let (number, block) = current;
                let start = self.general.rip;
                for op in &block.ops {
                    if (op.handler)(self, op).is_err() {
                        return self.stopped(Some((start, op)));
                    }
                }
                self.instructions += u64::from(block.instructions);
                if let Some(op) = &block.system {
                    let exit = self.execute_system(op, start);
                    if exit.is_some() || self.instructions > last || self.is_disturbed() {
                        return exit;
                    }
                    break None;
                }
                if self.kick.load(Ordering::Relaxed) || self.instructions > last {
                    return None;
                }
                match blocks.follow(block, self.general.rip, self.fetch_epoch) {
                    Some(next) => current = next,
                    None => break Some((number, start)),
                }
            };
        }
    }

    /// Whether a system instruction left something to be done before the next instruction.
    fn is_disturbed(&self) -> bool {
        self.pending.is_some()
            || self.nmi_waiting
            || self.window_wanted
            || self.interrupt_shadow
            || self.general.rflags & bit::RF != 0
            || self.steps_singly()
            || self.kick.load(Ordering::Relaxed)
    }

    /// Executes the system instruction at the end of a block that started at `start`.
    #[inline(never)]
    fn execute_system(&mut self, op: &Op, start: u64) -> Option<Exit> {
        self.general.rip = start;
        self.general.rip = self.next_rip(op);
        self.complete_flags();
        let result = (op.handler)(self, op);
        self.flags = Flags::from_register(self.general.rflags);
        if op.serializing {
            // Stores before it are visible before loads behind it.
            fence(Ordering::SeqCst);
        }
        if result.is_err() {
            return self.stopped_system(start, op);
        }
        self.instructions += 1;
        self.code_modified = false;
        None
    }

    /// Executes one instruction, with all that may happen around it.
    fn step(&mut self, blocks: &mut BlockCache) -> Option<Exit> {
        let start = self.general.rip;
        let shadow = std::mem::take(&mut self.interrupt_shadow);
        let flags_before = self.general.rflags;
        let retired = self.instructions;
        self.single_step = true;
        self.external.begin();
        let exit = self.step_one(blocks, start);
        self.single_step = false;
        let again = self.instructions == retired && exit.is_none() && self.stop == StopReason::Again;
        if self.instructions == retired && !again {
            // It did not begin: it is still in the shadow of the one before, and may still be resumed.
            if exit.is_some() {
                self.interrupt_shadow = shadow;
                self.general.rflags |= flags_before & bit::RF;
            }
            return exit;
        }
        if !again {
            self.external.finish();
        }
        // MOV SS and POP SS, which unlike STI do not change IF, hold traps back (SDM Vol. 3A 7.8.3).
        let stack_loaded = self.interrupt_shadow && (flags_before ^ self.general.rflags) & bit::IF == 0;
        if !stack_loaded && self.debug_trap(flags_before & bit::TF != 0) {
            self.pending.get_or_insert(Event::Exception { vector: vector::DEBUG, error_code: None });
        }
        exit
    }

    fn step_one(&mut self, blocks: &mut BlockCache, start: u64) -> Option<Exit> {
        let linear = self.code_base().wrapping_add(start);
        if self.steps_singly() && self.code_breakpoint(linear).is_err() {
            return self.stopped(None);
        }
        self.general.rflags &= !bit::RF;
        let Ok(number) = self.find_block(blocks) else {
            return self.stopped(None);
        };
        let block = blocks.get(number)?;
        for op in &block.ops {
            if (op.handler)(self, op).is_err() {
                return self.stopped(Some((start, op)));
            }
        }
        self.instructions += u64::from(block.instructions);
        self.code_modified = false;
        match &block.system {
            Some(op) => self.execute_system(op, start),
            None => None,
        }
    }

    /// Puts the registers right after a plain instruction stopped, or the fetch of one.
    #[cold]
    fn stopped(&mut self, place: Option<(u64, &Op)>) -> Option<Exit> {
        if let Some((start, op)) = place {
            self.general.rip = start;
            self.instructions += u64::from(op.ordinal);
            let finished = matches!(self.stop, StopReason::Leave | StopReason::ExitAfter(_));
            self.instructions += u64::from(finished);
            self.general.rip = if finished { self.next_rip(op) } else { self.instruction_rip(op) };
        }
        self.conclude(place.map_or(0, |(_, op)| op.length))
    }

    /// Puts the registers right after a system instruction stopped.
    #[cold]
    fn stopped_system(&mut self, start: u64, op: &Op) -> Option<Exit> {
        if matches!(self.stop, StopReason::Leave | StopReason::ExitAfter(_)) {
            self.instructions += 1;
        } else {
            self.general.rip = start;
            self.general.rip = self.instruction_rip(op);
        }
        self.conclude(op.length)
    }

    fn conclude(&mut self, length: u8) -> Option<Exit> {
        self.code_modified = false;
        match self.stop {
            StopReason::Exception { vector, error_code } => {
                self.external.finish();
                // An event that came while the instruction waited for an answer goes first; the fault comes again.
                self.pending.get_or_insert(Event::Exception { vector, error_code });
                None
            }
            StopReason::Exit(mut exit) => {
                self.external.suspend(self.general.rip, false);
                match &mut exit {
                    Exit::MemoryFault(fault) => fault.instruction_length = length,
                    Exit::RegisterAccess(access) => access.instruction_length = length,
                    _ => {}
                }
                Some(exit)
            }
            StopReason::ExitAfter(exit) => Some(exit),
            StopReason::Leave | StopReason::Again => None,
        }
    }

    /// Adds the instruction's bytes to an exit that reports them.
    fn describe_instruction(&mut self, mut exit: Exit) -> Exit {
        if let Exit::MemoryFault(fault) = &mut exit {
            fault.instruction = self.instruction_bytes();
        }
        exit
    }

    /// Brings the arithmetic flags into RFLAGS.
    fn complete_flags(&mut self) {
        self.general.rflags = self.general.rflags & !bit::ARITHMETIC | self.flags.to_register() | 2;
    }
}

//! Hardware task switches (SDM Vol. 3A, chapter 9), which exist outside long mode.

use engine::registers::{CS, DS, ES, FS, GS, RSP, SS, Segment};
use engine::{Event, Register, RegisterOperation};

use crate::Cpu;
use crate::debug::DR6_TASK;
use crate::descriptor::{Descriptor, system_type};
use crate::flags::bit;
use crate::frame::Frame;
use crate::stop::{Step, Stop, StopReason, vector};
use crate::tlb::View;

/// CR0.TS.
const CR0_TS: u64 = 1 << 3;
/// CR0.PG.
const CR0_PG: u64 = 1 << 31;
/// The busy bit in a TSS descriptor's type byte.
const BUSY: u8 = 2;

/// What switches tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cause {
    /// JMP.
    Jump,
    /// CALL.
    Call,
    /// IRET with NT set.
    Return,
    /// A task gate in the IDT.
    Event {
        /// Pushed on the new task's stack.
        error_code: Option<u32>,
    },
}

impl Cause {
    /// The new task returns to the old one.
    const fn nests(self) -> bool {
        matches!(self, Self::Call | Self::Event { .. })
    }
}

/// What the old task's TSS gets as its instruction pointer and flags.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Outgoing {
    pub(crate) rip: u64,
    pub(crate) rflags: u64,
}

/// Where a TSS has its fields (SDM Vol. 3A 9.2.1 and 9.6).
struct Layout {
    /// Bytes in a general register.
    size: usize,
    /// The smallest limit.
    limit: u32,
    cr3: Option<usize>,
    /// The instruction pointer; the flags and the general registers follow.
    ip: usize,
    /// ES; the other segment registers and LDTR follow at `size` bytes each.
    segments: usize,
    /// How many segment registers there are.
    segment_count: usize,
    /// The T flag.
    trap: Option<usize>,
}

const LAYOUT_16: Layout =
    Layout { size: 2, limit: 0x2B, cr3: None, ip: 0x0E, segments: 0x22, segment_count: 4, trap: None };
const LAYOUT_32: Layout =
    Layout { size: 4, limit: 0x67, cr3: Some(0x1C), ip: 0x20, segments: 0x48, segment_count: 6, trap: Some(0x64) };

impl Layout {
    const fn of(kind: u8) -> &'static Self {
        if kind & 8 == 0 { &LAYOUT_16 } else { &LAYOUT_32 }
    }

    /// The offset behind the state that a switch saves, apart from LDTR.
    const fn saved_end(&self) -> usize {
        self.segments + self.segment_count * self.size
    }

    fn get(&self, image: &[u8; 0x68], offset: usize) -> u64 {
        let mut value = [0; 8];
        value[..self.size].copy_from_slice(&image[offset..offset + self.size]);
        u64::from_le_bytes(value)
    }

    fn put(&self, image: &mut [u8; 0x68], offset: usize, value: u64) {
        image[offset..offset + self.size].copy_from_slice(&value.to_le_bytes()[..self.size]);
    }
}

impl Cpu {
    /// Switches to the task whose TSS `selector` names. An exception that the new task's state raises is delivered in
    /// the new task (SDM Vol. 3A 9.3), by the caller if it is delivering an event already.
    ///
    /// # Errors
    /// An exception, in the old task but for what was just said; or the guest has to be left.
    pub(crate) fn switch_task(&mut self, selector: u16, cause: Cause, saved: Outgoing) -> Step {
        let fault = if cause == Cause::Return { vector::INVALID_TSS } else { vector::GENERAL_PROTECTION };
        let error = u32::from(selector & !3);
        if selector & 4 != 0 || error == 0 {
            return self.raise(fault, Some(error));
        }
        let descriptor = self.descriptor(selector, fault)?;
        let busy = cause == Cause::Return;
        let kind = match (descriptor.system_type(), busy) {
            (Some(kind @ (system_type::TSS16 | system_type::TSS)), false)
            | (Some(kind @ (system_type::BUSY_TSS16 | system_type::BUSY_TSS)), true) => kind,
            _ => return self.raise(fault, Some(error)),
        };
        if !descriptor.is_present() {
            return self.raise(vector::NOT_PRESENT, Some(error));
        }
        let layout = Layout::of(kind);
        if descriptor.limit() < layout.limit {
            return self.raise(vector::INVALID_TSS, Some(error));
        }
        let mut image = [0; 0x68];
        let length = layout.limit as usize + 1;
        self.load_system_bytes(descriptor.base(), &mut image[..length], View::Supervisor)?;
        let task = RegisterOperation::Write(selector.into());
        self.intercept(Register::Tr, task)?;
        let table = RegisterOperation::Write(layout.get(&image, layout.saved_end()));
        self.intercept(Register::Ldtr, table)?;

        let (general, system) = (self.general, self.system.clone());
        let result = self.exchange_tasks(selector, descriptor, cause, saved, &image);
        if result == Err(Stop)
            && let StopReason::Exit(_) = self.stop
        {
            self.general = general;
            self.system = system;
            self.update_mode();
            return Err(Stop);
        }
        if layout.trap.is_some_and(|offset| image[offset] & 1 != 0) {
            self.debug_hits |= DR6_TASK;
        }
        let (Err(Stop), StopReason::Exception { vector, error_code }) = (result, self.stop) else {
            return result;
        };
        if matches!(cause, Cause::Event { .. }) {
            return result;
        }
        let delivered = self.deliver(Event::Exception { vector, error_code });
        if let StopReason::Exit(exit) = self.stop
            && delivered.is_err()
        {
            // RIP is the new task's; it must not go back to the instruction that switched.
            self.stop = StopReason::ExitAfter(exit);
        }
        delivered
    }

    /// Saves the old task, loads the new one and marks both. Marks come last, so that the switch can be repeated.
    fn exchange_tasks(
        &mut self,
        selector: u16,
        descriptor: Descriptor,
        cause: Cause,
        saved: Outgoing,
        image: &[u8; 0x68],
    ) -> Step {
        let old_task = self.system.tr;
        self.save_task(saved)?;
        if cause.nests() {
            self.store_system::<2>(descriptor.base(), u64::from(old_task.selector))?;
        }
        let layout = Layout::of(descriptor.system_type().unwrap_or(system_type::TSS));
        let loaded = self.load_task(selector, descriptor, cause, image, layout);
        if loaded.is_err() && matches!(self.stop, StopReason::Exit(_)) {
            return loaded;
        }
        let stop = self.stop;
        if !cause.nests() {
            self.set_busy(old_task.selector, false)?;
        }
        if cause != Cause::Return {
            self.set_busy(selector, true)?;
        }
        self.stop = stop;
        loaded
    }

    /// Writes the old task's registers to its TSS.
    fn save_task(&mut self, saved: Outgoing) -> Step {
        let task = self.system.tr;
        let layout = Layout::of(task.attributes as u8 & 15);
        let mut image = [0; 0x68];
        layout.put(&mut image, layout.ip, saved.rip);
        layout.put(&mut image, layout.ip + layout.size, saved.rflags);
        for index in 0..8 {
            layout.put(&mut image, layout.ip + (2 + index) * layout.size, self.general.gpr[index]);
        }
        for index in 0..layout.segment_count {
            let selector = self.system.segments[index].selector;
            layout.put(&mut image, layout.segments + index * layout.size, u64::from(selector));
        }
        let address = task.base.wrapping_add(layout.ip as u64);
        self.store_system_bytes(address, &image[layout.ip..layout.saved_end()], View::Supervisor)
    }

    fn load_task(
        &mut self,
        selector: u16,
        descriptor: Descriptor,
        cause: Cause,
        image: &[u8; 0x68],
        layout: &Layout,
    ) -> Step {
        let mut task = descriptor.segment(selector);
        task.attributes |= u16::from(BUSY);
        self.system.tr = task;
        self.system.cr0 |= CR0_TS;
        if let Some(offset) = layout.cr3
            && self.system.cr0 & CR0_PG != 0
        {
            self.load_page_directory(layout.get(image, offset))?;
        }
        self.general.rip = layout.get(image, layout.ip);
        let nested = if cause.nests() { bit::NT } else { 0 };
        self.general.rflags = layout.get(image, layout.ip + layout.size) & 0x3F_7FD5 | 2 | nested;
        for index in 0..8 {
            self.general.gpr[index] = layout.get(image, layout.ip + (2 + index) * layout.size);
        }
        let selector_at = |index: usize| {
            if index < layout.segment_count {
                layout.get(image, layout.segments + index * layout.size) as u16
            } else {
                0
            }
        };
        let table = layout.get(image, layout.saved_end()) as u16;
        // Selectors first: what cannot be loaded stays unusable.
        for (index, segment) in self.system.segments.iter_mut().enumerate() {
            *segment = Segment { selector: selector_at(index), ..Segment::default() };
        }
        let cpl = selector_at(CS) & 3;
        self.system.segments[SS].attributes = cpl << 5;
        self.system.ldtr = Segment { selector: table, ..Segment::default() };
        self.update_mode();

        self.load_task_table(table)?;
        if self.mode.virtual_8086 {
            for index in [ES, CS, SS, DS, FS, GS] {
                self.system.segments[index] = self.flat_segment(index, selector_at(index));
            }
        } else {
            self.load_task_code(selector_at(CS))?;
            self.system.segments[SS] = self.stack_segment(selector_at(SS), cpl as u8, vector::INVALID_TSS)?;
            self.update_mode();
            for index in [ES, DS, FS, GS] {
                self.load_task_data(index, selector_at(index))?;
            }
        }
        self.update_mode();
        if let Cause::Event { error_code: Some(error_code) } = cause {
            let mut frame = Frame::new(layout.size as u8);
            frame.push(u64::from(error_code));
            self.general.gpr[RSP] = self.push_frame(&self.current_stack(), &frame)?;
        }
        let code = self.system.segments[CS];
        self.check_target(self.general.rip, &code).map(drop)
    }

    fn load_task_table(&mut self, selector: u16) -> Step {
        let error = Some(u32::from(selector & !3));
        if selector & !3 == 0 {
            return Ok(());
        }
        if selector & 4 != 0 {
            return self.raise(vector::INVALID_TSS, error);
        }
        let descriptor = self.descriptor(selector, vector::INVALID_TSS)?;
        if descriptor.system_type() != Some(system_type::LDT) || !descriptor.is_present() {
            return self.raise(vector::INVALID_TSS, error);
        }
        self.system.ldtr = descriptor.segment(selector);
        Ok(())
    }

    fn load_task_code(&mut self, selector: u16) -> Step {
        let error = Some(u32::from(selector & !3));
        if selector & !3 == 0 {
            return self.raise(vector::INVALID_TSS, Some(0));
        }
        let descriptor = self.descriptor(selector, vector::INVALID_TSS)?;
        let rpl = (selector & 3) as u8;
        let allowed = if descriptor.is_conforming() { descriptor.dpl() <= rpl } else { descriptor.dpl() == rpl };
        if !descriptor.is_code() || !allowed {
            return self.raise(vector::INVALID_TSS, error);
        }
        if !descriptor.is_present() {
            return self.raise(vector::NOT_PRESENT, error);
        }
        self.mark_accessed(selector, &descriptor)?;
        self.system.segments[CS] = descriptor.segment(selector);
        Ok(())
    }

    fn load_task_data(&mut self, register: usize, selector: u16) -> Step {
        match self.data_segment(register, selector) {
            Ok(segment) => {
                self.system.segments[register] = segment;
                Ok(())
            }
            Err(Stop) => {
                if let StopReason::Exception { vector: vector::GENERAL_PROTECTION, error_code } = self.stop {
                    return self.raise(vector::INVALID_TSS, error_code);
                }
                Err(Stop)
            }
        }
    }

    /// Sets or clears the busy bit of a TSS descriptor.
    pub(crate) fn set_busy(&mut self, selector: u16, busy: bool) -> Step {
        match self.descriptor_address(selector & !4, 8) {
            Some(linear) => {
                let (set, clear) = if busy { (BUSY, 0) } else { (0, BUSY) };
                self.change_system_bits(linear.wrapping_add(5), set, clear)
            }
            None => Ok(()),
        }
    }
}

//! Why a vCPU left the guest, and what it is told in return.

use crate::{AccessKind, RegisterAccess};

/// Why [`Vcpu::run`](crate::Vcpu::run) returned.
///
/// Unless a variant says otherwise, RIP is at the instruction that caused the exit and nothing of it has taken effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// VMCALL or VMMCALL, in any mode and at any privilege level. RIP is at the instruction, which is `length` bytes
    /// long; whoever handles it moves RIP.
    Hypercall {
        /// Bytes in the instruction.
        length: u8,
    },
    /// IN, or one element of INS. Needs [`Completion::Value`].
    IoRead {
        /// The port.
        port: u16,
        /// 1, 2 or 4 bytes.
        size: u8,
    },
    /// OUT, or one element of OUTS. The instruction has finished unless it repeats.
    IoWrite {
        /// The port.
        port: u16,
        /// 1, 2 or 4 bytes.
        size: u8,
        /// The value, zero-extended.
        value: u32,
    },
    /// A read where there is neither RAM nor an overlay. Needs [`Completion::Value`].
    MmioRead {
        /// The guest physical address.
        gpa: u64,
        /// 1 to 8 bytes that do not cross a page.
        size: u8,
    },
    /// A write where there is neither RAM nor an overlay.
    MmioWrite {
        /// The guest physical address.
        gpa: u64,
        /// 1 to 8 bytes that do not cross a page.
        size: u8,
        /// The value, zero-extended.
        value: u64,
    },
    /// RDMSR of a register that the engine does not keep in
    /// [`SystemRegisters`](crate::registers::SystemRegisters). Needs [`Completion::Value`] or [`Completion::Fault`];
    /// engines with [`Intercepts::MSRS`](crate::Intercepts::MSRS) do without: then the next run goes on at RIP, wherever
    /// that is by then.
    ReadMsr {
        /// The register's address.
        index: u32,
    },
    /// WRMSR of such a register. Needs [`Completion::Done`] or [`Completion::Fault`], or nothing, as for a read.
    WriteMsr {
        /// The register's address.
        index: u32,
        /// EDX:EAX.
        value: u64,
    },
    /// MOV to CR8. The new priority is in [`SystemRegisters::cr8`](crate::registers::SystemRegisters::cr8) and the
    /// instruction has finished. Engines need not tell of one that raises the priority: nothing becomes due by it.
    TaskPriority,
    /// The effective access of a page forbade an access, or an instruction was fetched where there is neither RAM nor an
    /// overlay. The instruction, or the delivery of the pending event, starts again at the next run.
    MemoryFault(MemoryFault),
    /// An instruction that may access a register is about to, as
    /// [`Vcpu::set_register_intercepts`](crate::Vcpu::set_register_intercepts) asked to be told. The value was not checked.
    /// The instruction starts again at the next run.
    RegisterAccess(RegisterAccess),
    /// HLT has finished: RIP is behind it.
    Halt,
    /// An interrupt can be injected, as asked for by
    /// [`Vcpu::request_interrupt_window`](crate::Vcpu::request_interrupt_window).
    InterruptWindow,
    /// [`Kick::kick`](crate::Kick::kick) was called, the deadline or the instruction limit was reached, or the engine
    /// gives others a turn because the guest waits by executing PAUSE.
    Interrupted,
    /// A triple fault: the processor has shut down.
    Shutdown,
}

/// An access that the effective access of a guest page forbade.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryFault {
    /// The guest physical address, exact to the byte.
    pub gpa: u64,
    /// The guest virtual address, if the access had one (a page walk's own accesses report the address that is being
    /// translated).
    pub gva: Option<u64>,
    /// What was tried.
    pub kind: AccessKind,
    /// The processor was at CPL 3, and a fetch counts as one of user mode ([`crate::Vcpu::set_mode_based_execute`]).
    pub user: bool,
    /// The access was made by the walk of page tables for `gva`.
    pub page_walk: bool,
    /// Bytes in the instruction, 0 when unknown (a fetch).
    pub instruction_length: u8,
    /// The bytes at RIP as far as they could be fetched.
    pub instruction: InstructionBytes,
}

/// The first bytes of an instruction stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct InstructionBytes {
    /// The bytes; those from `length` on are zero.
    pub bytes: [u8; 16],
    /// How many there are, up to 16.
    pub length: u8,
}

/// The answer to an [`Exit`] that needs one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Completion {
    /// What was read; bits beyond the access's size are ignored.
    Value(u64),
    /// A write was accepted.
    Done,
    /// The access faults with #GP(0).
    Fault,
}

/// Something that interrupts the instruction stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// An external interrupt; the caller made sure that the vCPU is interruptible.
    Interrupt {
        /// The vector.
        vector: u8,
    },
    /// A non-maskable interrupt.
    Nmi,
    /// A processor exception. For a page fault CR2 has been set by the caller.
    Exception {
        /// The vector, 0 to 31.
        vector: u8,
        /// The error code, for exceptions that push one.
        error_code: Option<u32>,
    },
    /// INT n, INT1, INT3 or INTO: RIP is at the instruction and the return address is behind it.
    SoftwareInterrupt {
        /// The vector.
        vector: u8,
        /// Bytes in the instruction.
        length: u8,
    },
}

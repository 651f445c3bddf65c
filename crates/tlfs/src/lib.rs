//! Types of the Hyper-V Top-Level Functional Specification (TLFS).
//!
//! These are the constants and the memory layouts that a guest and its hypervisor agree on, without any behaviour.
//! Every value that can come from a guest is representable: enumerations are open and reserved bits are kept.
#![no_std]
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod assist_page;
pub mod call_code;
pub mod context;
pub mod cpuid;
pub mod hypercall;
pub mod hypercalls;
pub mod ids;
pub mod intercept;
pub mod memory;
pub mod message;
pub mod msr;
pub mod register_name;
pub mod registers;
pub mod status;
pub mod vp_set;
pub mod vsm;
pub mod vtl;

pub use call_code::CallCode;
pub use context::InitialVpContext;
pub use hypercall::{HypercallInput, HypercallResult};
pub use ids::{PartitionId, VpIndex};
pub use message::{Message, MessageType};
pub use register_name::RegisterName;
pub use registers::RegisterValue;
pub use status::HvStatus;
pub use vp_set::VpSet;
pub use vtl::{InputVtl, Vtl, VtlSet};

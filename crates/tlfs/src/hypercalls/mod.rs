//! Input and output structures of hypercalls, by subject.
//!
//! The fixed header of a rep hypercall is named `...Header`, unless a simple hypercall has the same; list elements are
//! structures of their own. Fields named `padding` are ignored.

pub mod flush;
pub mod interrupt;
pub mod partition;
pub mod register;
pub mod vtl;

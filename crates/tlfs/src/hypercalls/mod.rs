//! Input and output structures of hypercalls, by subject.
//!
//! The headers of rep hypercalls are named `...Header`, their list elements for themselves. What begins with a
//! lower-case `reserved` or `padding` must be zero, or is ignored, as the specification says.

pub mod flush;
pub mod interrupt;
pub mod partition;
pub mod register;
pub mod vtl;

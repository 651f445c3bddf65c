//! The integer instructions.

pub(crate) mod binary;
pub(crate) mod bits;
pub(crate) mod branch;
pub(crate) mod bulk;
pub(crate) mod decimal;
pub(crate) mod exchange;
pub(crate) mod extensions;
pub(crate) mod flag;
pub(crate) mod moves;
pub(crate) mod multiply;
pub(crate) mod operations;
pub(crate) mod shift;
pub(crate) mod stack;
pub(crate) mod string;

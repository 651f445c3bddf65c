//! Hypercall status codes.

/// HV_STATUS (TLFS 3.12).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status(pub u16);

#[expect(missing_docs, reason = "the names are the specification's")]
impl Status {
    pub const SUCCESS: Self = Self(0);
    pub const INVALID_HYPERCALL_CODE: Self = Self(2);
    pub const INVALID_HYPERCALL_INPUT: Self = Self(3);
    pub const INVALID_ALIGNMENT: Self = Self(4);
    pub const INVALID_PARAMETER: Self = Self(5);
    pub const ACCESS_DENIED: Self = Self(6);
    pub const INVALID_PARTITION_ID: Self = Self(0xD);
    pub const INVALID_VP_INDEX: Self = Self(0xE);
    pub const INVALID_VP_STATE: Self = Self(0x15);
    pub const INVALID_REGISTER_VALUE: Self = Self(0x50);
    pub const INVALID_VTL_STATE: Self = Self(0x51);
}

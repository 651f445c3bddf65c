//! Status codes of hypercalls (TLFS 3.12, appendix B).

use core::fmt;

use open_enum::open_enum;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// HV_STATUS: how a hypercall ended (TLFS appendix B).
///
/// The specification gives 0x33 to both HV_STATUS_INSUFFICIENT_BUFFERS and HV_STATUS_INSUFFICIENT_BUFFER; shipping
/// hypervisors and guests use 0x13 for the former, as do its older editions.
#[open_enum]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(u16)]
pub enum HvStatus {
    /// HV_STATUS_SUCCESS: the call succeeded.
    Success = 0x0000,
    /// HV_STATUS_INVALID_HYPERCALL_CODE: the call code is not supported.
    InvalidHypercallCode = 0x0002,
    /// HV_STATUS_INVALID_HYPERCALL_INPUT: the rep count or start index is wrong, or a reserved bit of the input word is set.
    InvalidHypercallInput = 0x0003,
    /// HV_STATUS_INVALID_ALIGNMENT: a parameter list is not aligned to 8 bytes, spans pages or lies outside the GPA space.
    InvalidAlignment = 0x0004,
    /// HV_STATUS_INVALID_PARAMETER: an input parameter is invalid.
    InvalidParameter = 0x0005,
    /// HV_STATUS_ACCESS_DENIED: the caller has not the right to do this.
    AccessDenied = 0x0006,
    /// HV_STATUS_INVALID_PARTITION_STATE: the partition's state does not allow this.
    InvalidPartitionState = 0x0007,
    /// HV_STATUS_OPERATION_DENIED: the operation could not be performed; why depends on the operation.
    OperationDenied = 0x0008,
    /// HV_STATUS_UNKNOWN_PROPERTY: there is no such partition property.
    UnknownProperty = 0x0009,
    /// HV_STATUS_PROPERTY_VALUE_OUT_OF_RANGE: the property's value is out of range or violates an invariant.
    PropertyValueOutOfRange = 0x000A,
    /// HV_STATUS_INSUFFICIENT_MEMORY: the partition's memory pool is too small for this.
    InsufficientMemory = 0x000B,
    /// HV_STATUS_PARTITION_TOO_DEEP: the hierarchy of partitions would become too deep.
    PartitionTooDeep = 0x000C,
    /// HV_STATUS_INVALID_PARTITION_ID: there is no such partition.
    InvalidPartitionId = 0x000D,
    /// HV_STATUS_INVALID_VP_INDEX: there is no such virtual processor.
    InvalidVpIndex = 0x000E,
    /// HV_STATUS_NOT_FOUND: what was asked for is not there.
    NotFound = 0x0010,
    /// HV_STATUS_INVALID_PORT_ID: the port id is not unique or does not exist.
    InvalidPortId = 0x0011,
    /// HV_STATUS_INVALID_CONNECTION_ID: the connection id is not unique or does not exist.
    InvalidConnectionId = 0x0012,
    /// HV_STATUS_INSUFFICIENT_BUFFERS: the target port has no buffer for another message.
    InsufficientBuffers = 0x0013,
    /// HV_STATUS_NOT_ACKNOWLEDGED: the external interrupt to clear was not asserted and acknowledged before.
    NotAcknowledged = 0x0014,
    /// HV_STATUS_INVALID_VP_STATE: the virtual processor is not in the state for this.
    InvalidVpState = 0x0015,
    /// HV_STATUS_ACKNOWLEDGED: an external interrupt was acknowledged and is not cleared yet.
    Acknowledged = 0x0016,
    /// HV_STATUS_INVALID_SAVE_RESTORE_STATE: a save or restore was not begun at its beginning.
    InvalidSaveRestoreState = 0x0017,
    /// HV_STATUS_INVALID_SYNIC_STATE: a feature of the SynIC that is needed is off.
    InvalidSynicState = 0x0018,
    /// HV_STATUS_OBJECT_IN_USE: the object or value is in use in a way that does not allow this.
    ObjectInUse = 0x0019,
    /// HV_STATUS_INVALID_PROXIMITY_DOMAIN_INFO: the proximity domain's flags or id are invalid.
    InvalidProximityDomainInfo = 0x001A,
    /// HV_STATUS_NO_DATA: there is no data to retrieve.
    NoData = 0x001B,
    /// HV_STATUS_INACTIVE: the debug connection has received nothing since the last operation.
    Inactive = 0x001C,
    /// HV_STATUS_NO_RESOURCES: a resource is short or a limit of the implementation is reached.
    NoResources = 0x001D,
    /// HV_STATUS_FEATURE_UNAVAILABLE: the hypervisor does not offer this feature to the caller.
    FeatureUnavailable = 0x001E,
    /// HV_STATUS_PARTIAL_PACKET: an I/O error cut the debug packet short.
    PartialPacket = 0x001F,
    /// HV_STATUS_PROCESSOR_FEATURE_NOT_SUPPORTED: the state to restore needs a processor feature that is not there.
    ProcessorFeatureNotSupported = 0x0020,
    /// HV_STATUS_PROCESSOR_CACHE_LINE_FLUSH_SIZE_INCOMPATIBLE: the processor's cache line size does not fit.
    ProcessorCacheLineFlushSizeIncompatible = 0x0030,
    /// HV_STATUS_INSUFFICIENT_BUFFER: the buffer is too small for the data.
    InsufficientBuffer = 0x0033,
    /// HV_STATUS_INCOMPATIBLE_PROCESSOR: the processor's architecture is not supported.
    IncompatibleProcessor = 0x0037,
    /// HV_STATUS_INSUFFICIENT_DEVICE_DOMAINS: all domains of the I/O remapping hardware are in use.
    InsufficientDeviceDomains = 0x0038,
    /// HV_STATUS_CPUID_FEATURE_VALIDATION_ERROR: the logical processors' CPUID features do not fit.
    CpuidFeatureValidationError = 0x003C,
    /// HV_STATUS_CPUID_XSAVE_FEATURE_VALIDATION_ERROR: their XSAVE features do not fit.
    CpuidXsaveFeatureValidationError = 0x003D,
    /// HV_STATUS_PROCESSOR_STARTUP_TIMEOUT: a processor did not start in time.
    ProcessorStartupTimeout = 0x003E,
    /// HV_STATUS_SMX_ENABLED: the firmware enabled SMX.
    SmxEnabled = 0x003F,
    /// HV_STATUS_INVALID_LP_INDEX: there is no such logical processor.
    InvalidLpIndex = 0x0041,
    /// HV_STATUS_INVALID_REGISTER_VALUE: the register cannot hold this value.
    InvalidRegisterValue = 0x0050,
    /// HV_STATUS_INVALID_VTL_STATE: the VTL is not in the state for this (TLFS 7.10.3).
    InvalidVtlState = 0x0051,
    /// HV_STATUS_NX_NOT_DETECTED: the machine has no NX.
    NxNotDetected = 0x0055,
    /// HV_STATUS_INVALID_DEVICE_ID: there is no such device.
    InvalidDeviceId = 0x0057,
    /// HV_STATUS_INVALID_DEVICE_STATE: the device's state does not allow this.
    InvalidDeviceState = 0x0058,
    /// HV_STATUS_PENDING_PAGE_REQUESTS: page requests of the device were discarded.
    PendingPageRequests = 0x0059,
    /// HV_STATUS_PAGE_REQUEST_INVALID: a page request asks for an access that the guest may not make.
    PageRequestInvalid = 0x0060,
    /// HV_STATUS_KEY_ALREADY_EXISTS: the key is there already.
    KeyAlreadyExists = 0x0065,
    /// HV_STATUS_DEVICE_ALREADY_IN_DOMAIN: the device belongs to a domain already.
    DeviceAlreadyInDomain = 0x0066,
    /// HV_STATUS_INVALID_CPU_GROUP_ID: there is no such CPU group.
    InvalidCpuGroupId = 0x006F,
    /// HV_STATUS_INVALID_CPU_GROUP_STATE: the CPU group's state does not allow this.
    InvalidCpuGroupState = 0x0070,
    /// HV_STATUS_OPERATION_FAILED: the operation failed.
    OperationFailed = 0x0071,
    /// HV_STATUS_NOT_ALLOWED_WITH_NESTED_VIRT_ACTIVE: a virtual processor has nested virtualization active.
    NotAllowedWithNestedVirtActive = 0x0072,
    /// HV_STATUS_INSUFFICIENT_ROOT_MEMORY: the root partition's memory is too small for this.
    InsufficientRootMemory = 0x0073,
    /// HV_STATUS_EVENT_BUFFER_ALREADY_FREED: the event log buffer was freed before.
    EventBufferAlreadyFreed = 0x0074,
    /// HV_STATUS_TIME_OUT: the operation did not complete in its time.
    TimeOut = 0x0078,
    /// HV_STATUS_CALL_PENDING: the call goes on asynchronously.
    CallPending = 0x0079,
    /// HV_STATUS_VTL_ALREADY_ENABLED: the VTL is enabled already.
    VtlAlreadyEnabled = 0x0086,
    /// HV_STATUS_UNKNOWN_REGISTER_NAME: there is no such register.
    UnknownRegisterName = 0x0087,
}

impl HvStatus {
    /// Whether the call succeeded.
    #[must_use]
    pub const fn is_success(self) -> bool {
        self.0 == Self::Success.0
    }

    /// This status as a [`Result`].
    ///
    /// # Errors
    /// When it is not [`Self::Success`].
    pub const fn ok(self) -> Result<(), Self> {
        if self.is_success() { Ok(()) } else { Err(self) }
    }
}

/// The name and the code, for instance `AccessDenied (0x6)`.
impl fmt::Display for HvStatus {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{self:?} ({:#x})", self.0)
    }
}

impl core::error::Error for HvStatus {}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::string::ToString;

    use super::*;

    #[test]
    fn only_zero_is_success() {
        for code in 0..=u16::MAX {
            assert_eq!(HvStatus(code).ok().is_ok(), code == 0);
        }
    }

    #[test]
    fn unknown_codes_are_representable() {
        assert_eq!(HvStatus(0xFFFF).to_string(), "HvStatus(65535) (0xffff)");
        assert_eq!(HvStatus::AccessDenied.to_string(), "AccessDenied (0x6)");
    }
}

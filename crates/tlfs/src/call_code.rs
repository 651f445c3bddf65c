//! Call codes of hypercalls (TLFS appendix A).

use open_enum::open_enum;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// HV_CALL_CODE: which hypercall is meant, bits 15:0 of the input word (TLFS 3.7, appendix A).
///
/// The names are the specification's without their HvCall or HvExtCall.
#[open_enum]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(u16)]
pub enum CallCode {
    /// HvCallSwitchVirtualAddressSpace switches the caller's virtual address space.
    SwitchVirtualAddressSpace = 0x0001,
    /// HvCallFlushVirtualAddressSpace flushes the TLB entries of an address space.
    FlushVirtualAddressSpace = 0x0002,
    /// HvCallFlushVirtualAddressList flushes the TLB entries of ranges of an address space.
    FlushVirtualAddressList = 0x0003,
    /// HvCallGetLogicalProcessorRunTime reads a logical processor's run time.
    GetLogicalProcessorRunTime = 0x0004,
    /// HvCallNotifyLongSpinWait tells that the caller spins for a resource.
    NotifyLongSpinWait = 0x0008,
    /// HvCallParkedVirtualProcessors tells which virtual processors are parked.
    ParkedVirtualProcessors = 0x0009,
    /// HvCallSendSyntheticClusterIpi sends a fixed interrupt to up to 64 virtual processors.
    SendSyntheticClusterIpi = 0x000B,
    /// HvCallModifyVtlProtectionMask changes what lower VTLs may do with pages.
    ModifyVtlProtectionMask = 0x000C,
    /// HvCallEnablePartitionVtl enables a VTL for a partition.
    EnablePartitionVtl = 0x000D,
    /// HvCallDisablePartitionVtl disables a VTL for a partition.
    DisablePartitionVtl = 0x000E,
    /// HvCallEnableVpVtl enables a VTL on a virtual processor.
    EnableVpVtl = 0x000F,
    /// HvCallDisableVpVtl disables a VTL on a virtual processor.
    DisableVpVtl = 0x0010,
    /// HvCallVtlCall enters the next higher VTL.
    VtlCall = 0x0011,
    /// HvCallVtlReturn goes back to the next lower VTL.
    VtlReturn = 0x0012,
    /// HvCallFlushVirtualAddressSpaceEx is [`Self::FlushVirtualAddressSpace`] with a sparse set of virtual processors.
    FlushVirtualAddressSpaceEx = 0x0013,
    /// HvCallFlushVirtualAddressListEx is [`Self::FlushVirtualAddressList`] with a sparse set of virtual processors.
    FlushVirtualAddressListEx = 0x0014,
    /// HvCallSendSyntheticClusterIpiEx is [`Self::SendSyntheticClusterIpi`] with a sparse set of virtual processors.
    SendSyntheticClusterIpiEx = 0x0015,
    /// HvCallCreatePartition creates a partition.
    CreatePartition = 0x0040,
    /// HvCallInitializePartition initializes a partition.
    InitializePartition = 0x0041,
    /// HvCallFinalizePartition frees a partition's resources.
    FinalizePartition = 0x0042,
    /// HvCallDeletePartition deletes a partition.
    DeletePartition = 0x0043,
    /// HvCallGetPartitionProperty reads a property of a partition.
    GetPartitionProperty = 0x0044,
    /// HvCallSetPartitionProperty writes a property of a partition.
    SetPartitionProperty = 0x0045,
    /// HvCallGetPartitionId reads the caller's partition id.
    GetPartitionId = 0x0046,
    /// HvCallGetNextChildPartition enumerates child partitions.
    GetNextChildPartition = 0x0047,
    /// HvCallDepositMemory gives memory to a partition's pool.
    DepositMemory = 0x0048,
    /// HvCallWithdrawMemory takes memory out of a partition's pool.
    WithdrawMemory = 0x0049,
    /// HvCallGetMemoryBalance reads how much memory a pool has.
    GetMemoryBalance = 0x004A,
    /// HvCallMapGpaPages maps pages into a partition's GPA space.
    MapGpaPages = 0x004B,
    /// HvCallUnmapGpaPages unmaps pages.
    UnmapGpaPages = 0x004C,
    /// HvCallInstallIntercept installs or removes an intercept.
    InstallIntercept = 0x004D,
    /// HvCallCreateVp creates a virtual processor.
    CreateVp = 0x004E,
    /// HvCallDeleteVp deletes a virtual processor.
    DeleteVp = 0x004F,
    /// HvCallGetVpRegisters reads registers of a virtual processor.
    GetVpRegisters = 0x0050,
    /// HvCallSetVpRegisters writes registers of a virtual processor.
    SetVpRegisters = 0x0051,
    /// HvCallTranslateVirtualAddress translates a guest virtual address.
    TranslateVirtualAddress = 0x0052,
    /// HvCallReadGpa reads guest memory.
    ReadGpa = 0x0053,
    /// HvCallWriteGpa writes guest memory.
    WriteGpa = 0x0054,
    /// HvCallClearVirtualInterrupt acknowledges that a virtual interrupt was cleared.
    ClearVirtualInterrupt = 0x0056,
    /// HvCallDeletePort deletes a port.
    DeletePort = 0x0058,
    /// HvConnectPort connects to a port (superseded by [`Self::ConnectPort`]).
    ConnectPortV1 = 0x0059,
    /// HvCallGetPortProperty reads a property of a port.
    GetPortProperty = 0x005A,
    /// HvCallDisconnectPort deletes a connection.
    DisconnectPort = 0x005B,
    /// HvCallPostMessage posts a message through a connection.
    PostMessage = 0x005C,
    /// HvCallSignalEvent signals an event through a connection.
    SignalEvent = 0x005D,
    /// HvCallSavePartitionState saves a partition's state.
    SavePartitionState = 0x005E,
    /// HvCallRestorePartitionState restores a partition's state.
    RestorePartitionState = 0x005F,
    /// HvCallInitializeEventLogBufferGroup initializes a group of event log buffers.
    InitializeEventLogBufferGroup = 0x0060,
    /// HvCallFinalizeEventLogBufferGroup frees a group of event log buffers.
    FinalizeEventLogBufferGroup = 0x0061,
    /// HvCallCreateEventLogBuffer creates an event log buffer.
    CreateEventLogBuffer = 0x0062,
    /// HvCallDeleteEventLogBuffer deletes an event log buffer.
    DeleteEventLogBuffer = 0x0063,
    /// HvCallMapEventLogBuffer maps an event log buffer.
    MapEventLogBuffer = 0x0064,
    /// HvCallUnmapEventLogBuffer unmaps an event log buffer.
    UnmapEventLogBuffer = 0x0065,
    /// HvCallSetEventLogGroupSources selects what an event log group records.
    SetEventLogGroupSources = 0x0066,
    /// HvCallReleaseEventLogBuffer releases an event log buffer.
    ReleaseEventLogBuffer = 0x0067,
    /// HvCallFlushEventLogBuffer flushes an event log buffer.
    FlushEventLogBuffer = 0x0068,
    /// HvCallPostDebugData sends debug data.
    PostDebugData = 0x0069,
    /// HvCallRetrieveDebugData receives debug data.
    RetrieveDebugData = 0x006A,
    /// HvCallResetDebugSession resets the debug session.
    ResetDebugSession = 0x006B,
    /// HvCallMapStatsPage maps a statistics page.
    MapStatsPage = 0x006C,
    /// HvCallUnmapStatsPage unmaps a statistics page.
    UnmapStatsPage = 0x006D,
    /// HvCallMapSparseGpaPages maps scattered pages into a partition's GPA space.
    MapSparseGpaPages = 0x006E,
    /// HvCallSetSystemProperty writes a property of the system.
    SetSystemProperty = 0x006F,
    /// HvCallSetPortProperty writes a property of a port.
    SetPortProperty = 0x0070,
    /// HvCallOutputDebugCharacter writes a character to the debugger.
    OutputDebugCharacter = 0x0071,
    /// HvCallAddLogicalProcessor adds a logical processor.
    AddLogicalProcessor = 0x0076,
    /// HvCallRemoveLogicalProcessor removes a logical processor.
    RemoveLogicalProcessor = 0x0077,
    /// HvCallQueryNumaDistance reads the distance between NUMA nodes.
    QueryNumaDistance = 0x0078,
    /// HvCallSetLogicalProcessorProperty writes a property of a logical processor.
    SetLogicalProcessorProperty = 0x0079,
    /// HvCallGetLogicalProcessorProperty reads a property of a logical processor.
    GetLogicalProcessorProperty = 0x007A,
    /// HvCallGetSystemProperty reads a property of the system.
    GetSystemProperty = 0x007B,
    /// HvCallMapDeviceInterrupt maps a device's interrupt.
    MapDeviceInterrupt = 0x007C,
    /// HvCallUnmapDeviceInterrupt unmaps a device's interrupt.
    UnmapDeviceInterrupt = 0x007D,
    /// HvCallRetargetDeviceInterrupt sends a device's interrupt to other virtual processors.
    RetargetDeviceInterrupt = 0x007E,
    /// HvCallMapDevicePages maps pages for a device.
    MapDevicePages = 0x0080,
    /// HvCallUnmapDevicePages unmaps pages of a device.
    UnmapDevicePages = 0x0081,
    /// HvCallAttachDevice attaches a device to a domain.
    AttachDevice = 0x0082,
    /// HvCallDetachDevice detaches a device from its domain.
    DetachDevice = 0x0083,
    /// HvCallNotifyStandbyTransition tells that the system enters or leaves standby.
    NotifyStandbyTransition = 0x0084,
    /// HvCallPrepareForSleep prepares for sleep.
    PrepareForSleep = 0x0085,
    /// HvCallPrepareForHibernate prepares for hibernation.
    PrepareForHibernate = 0x0086,
    /// HvCallNotifyPartitionEvent tells of a partition event.
    NotifyPartitionEvent = 0x0087,
    /// HvCallGetLogicalProcessorRegisters reads registers of a logical processor.
    GetLogicalProcessorRegisters = 0x0088,
    /// HvCallSetLogicalProcessorRegisters writes registers of a logical processor.
    SetLogicalProcessorRegisters = 0x0089,
    /// HvCallQueryAssociatedLpsForMca finds the logical processors that share a machine check bank.
    QueryAssociatedLpsForMca = 0x008A,
    /// HvCallNotifyPortRingEmpty tells that an event ring is empty.
    NotifyPortRingEmpty = 0x008B,
    /// HvCallInjectSyntheticMachineCheck injects a machine check.
    InjectSyntheticMachineCheck = 0x008C,
    /// HvCallScrubPartition makes a partition's memory unreadable.
    ScrubPartition = 0x008D,
    /// HvCallCollectLivedump dumps the hypervisor's memory.
    CollectLivedump = 0x008E,
    /// HvCallDisableHypervisor turns the hypervisor off.
    DisableHypervisor = 0x008F,
    /// HvCallModifySparseGpaPages changes how scattered pages are mapped.
    ModifySparseGpaPages = 0x0090,
    /// HvCallRegisterInterceptResult registers what an intercept answers.
    RegisterInterceptResult = 0x0091,
    /// HvCallUnregisterInterceptResult takes back what an intercept answers.
    UnregisterInterceptResult = 0x0092,
    /// HvCallAssertVirtualInterrupt asserts an interrupt in a partition.
    AssertVirtualInterrupt = 0x0094,
    /// HvCallCreatePort creates a port.
    CreatePort = 0x0095,
    /// HvCallConnectPort connects to a port.
    ConnectPort = 0x0096,
    /// HvCallGetSpaPageList finds the system physical pages of guest pages.
    GetSpaPageList = 0x0097,
    /// HvCallStartVirtualProcessor starts a virtual processor with given registers.
    StartVirtualProcessor = 0x0099,
    /// HvCallGetVpIndexFromApicId finds virtual processors by their APIC ids.
    GetVpIndexFromApicId = 0x009A,
    /// HvCallTranslateVirtualAddressEx is [`Self::TranslateVirtualAddress`] with more to tell about failures.
    TranslateVirtualAddressEx = 0x00AC,
    /// HvCallCheckForIoIntercept tells whether an access to an I/O port would be intercepted.
    CheckForIoIntercept = 0x00AD,
    /// HvCallFlushGuestPhysicalAddressSpace flushes a nested guest's second-level translations.
    FlushGuestPhysicalAddressSpace = 0x00AF,
    /// HvCallFlushGuestPhysicalAddressList flushes ranges of a nested guest's second-level translations.
    FlushGuestPhysicalAddressList = 0x00B0,
    /// HvCallSignalEventDirect signals an event of a given SINT.
    SignalEventDirect = 0x00C0,
    /// HvCallPostMessageDirect posts a message to a given SINT.
    PostMessageDirect = 0x00C1,
    /// HvCallQueryVtlProtectionMaskRange reads what lower VTLs may do with ranges of pages.
    QueryVtlProtectionMaskRange = 0x00CC,
    /// HvCallModifyVtlProtectionMaskRange changes what lower VTLs may do with ranges of pages.
    ModifyVtlProtectionMaskRange = 0x00CD,
    /// HvCallCheckSparseGpaPageVtlAccess tells whether a lower VTL may access pages.
    CheckSparseGpaPageVtlAccess = 0x00D4,
    /// HvCallAcceptGpaPages accepts pages of an isolated partition.
    AcceptGpaPages = 0x00D9,
    /// HvCallModifySparseGpaPageHostVisibility changes which pages the host sees.
    ModifySparseGpaPageHostVisibility = 0x00DB,
    /// HvCallMapVpStatePage maps a page of a virtual processor's state.
    MapVpStatePage = 0x00E1,
    /// HvCallUnmapVpStatePage unmaps a page of a virtual processor's state.
    UnmapVpStatePage = 0x00E2,
    /// HvCallGetVpSetFromMda finds the virtual processors of a message destination address.
    GetVpSetFromMda = 0x00E5,
    /// HvCallGetVpCpuidValues reads what CPUID answers on a virtual processor.
    GetVpCpuidValues = 0x00F4,
    /// HvCallMemoryMappedIoRead reads a memory-mapped device.
    MemoryMappedIoRead = 0x0106,
    /// HvCallMemoryMappedIoWrite writes a memory-mapped device.
    MemoryMappedIoWrite = 0x0107,
    /// HvCallSetPartitionPropertyEx writes a property of a partition that is larger than 64 bits.
    SetPartitionPropertyEx = 0x010A,
    /// HvCallInstallInterceptEx installs an intercept that has more parameters.
    InstallInterceptEx = 0x0110,
    /// HvCallPinGpaPageRanges pins ranges of pages.
    PinGpaPageRanges = 0x0112,
    /// HvCallUnpinGpaPageRanges unpins ranges of pages.
    UnpinGpaPageRanges = 0x0113,
    /// HvCallQuerySparseGpaPageHostVisibility tells which pages the host sees.
    QuerySparseGpaPageHostVisibility = 0x011C,
    /// HvCallSetVirtualInterruptTarget sets the virtual processor that gets an interrupt.
    SetVirtualInterruptTarget = 0x011F,
    /// HvCallMapStatsPage2 maps a statistics page at a place that the caller chooses.
    MapStatsPage2 = 0x0131,
    /// HvExtCallQueryCapabilities tells which extended hypercalls there are.
    QueryCapabilities = 0x8001,
    /// HvExtCallGetBootZeroedMemory tells which memory is zero at boot.
    GetBootZeroedMemory = 0x8002,
    /// HvExtCallMemoryHeatHint tells how often pages are used.
    MemoryHeatHint = 0x8003,
    /// HvExtCallEpfSetup sets up enlightened page faults.
    EpfSetup = 0x8004,
    /// HvExtCallMemoryHeatHintAsync tells how often pages are used, without waiting.
    MemoryHeatHintAsync = 0x8006,
}

/// Call codes from here on are extended hypercalls (TLFS 3.14).
pub const EXTENDED: u16 = 0x8000;

impl CallCode {
    /// Whether this is an extended hypercall, which needs the privilege EnableExtendedHypercalls (TLFS 3.14).
    #[must_use]
    pub const fn is_extended(self) -> bool {
        self.0 >= EXTENDED
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extended_calls_begin_at_0x8000() {
        assert!(!CallCode(0x7FFF).is_extended());
        assert!(CallCode::QueryCapabilities.is_extended());
    }
}

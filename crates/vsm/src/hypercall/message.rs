//! Posting messages and signaling events (TLFS 11.11).

use tlfs::cpuid::PartitionPrivileges;
use tlfs::hypercalls::interrupt as input;
use tlfs::{CallCode, HvStatus};

use super::{Call, Simple, Stop};
use crate::connections::Posted;

/// HvCallPostMessage.
pub(super) struct PostMessage;

impl Simple for PostMessage {
    const CODE: CallCode = CallCode::PostMessage;
    const PRIVILEGES: PartitionPrivileges = PartitionPrivileges::new().with_post_messages(true);
    type Input = input::PostMessage;
    type Output = ();

    fn call(call: &mut Call<'_>, input: &Self::Input) -> Result<(), Stop> {
        let size = usize::try_from(input.payload_size).unwrap_or(usize::MAX);
        let payload = input.payload.get(..size).ok_or(HvStatus::InvalidParameter)?;
        let (vp, vtl, message_type) = (call.vp.index(), call.vtl(), input.message_type);
        Ok(call.partition().post(input.connection_id, Posted { vp, vtl, message_type, payload })?)
    }
}

/// HvCallSignalEvent.
pub(super) struct SignalEvent;

impl Simple for SignalEvent {
    const CODE: CallCode = CallCode::SignalEvent;
    const PRIVILEGES: PartitionPrivileges = PartitionPrivileges::new().with_signal_events(true);
    type Input = input::SignalEvent;
    type Output = ();

    fn call(call: &mut Call<'_>, input: &Self::Input) -> Result<(), Stop> {
        Ok(call.partition().signal(input.connection_id, input.flag_number, call.vtl())?)
    }
}

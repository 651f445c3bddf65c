//! Messages and events for other partitions: what a guest may ask for (TLFS 11.11).
//!
//! Which connections there are is the host's affair, so only what holds for all of them can be checked.

use tlfs::HvStatus;

use super::discovery::privileges;
use crate::hypercalls::{post_message, signal_event};
use crate::suite::{Outcome, checks, ensure_refused, ensure_status};

checks! {
    "11.11.1" posting_to_a_connection_that_is_not_there_is_refused,
    "11.11.1" posting_messages_of_the_hypervisors_types_is_refused,
    "11.11.1" posting_too_large_a_payload_is_refused,
    "11.11.1" connection_ids_have_24_bits,
    "11.11.2" signaling_to_a_connection_that_is_not_there_is_refused,
}

/// A connection that no host makes.
const NOWHERE: u32 = 0x00AB_CDEF;

/// The status that the partition's privileges leave for what is bad otherwise.
fn refused_with(allowed: bool, status: HvStatus) -> &'static [HvStatus] {
    match status {
        _ if !allowed => &[HvStatus::AccessDenied],
        HvStatus::InvalidConnectionId => &[HvStatus::InvalidConnectionId],
        _ => &[HvStatus::InvalidParameter],
    }
}

fn posting_to_a_connection_that_is_not_there_is_refused() -> Outcome {
    let expected = refused_with(privileges().post_messages(), HvStatus::InvalidConnectionId);
    ensure_status(post_message(NOWHERE, 1, 8), expected)?;
    ensure_status(post_message(NOWHERE, 0x7FFF_FFFF, 240), expected)
}

fn posting_messages_of_the_hypervisors_types_is_refused() -> Outcome {
    let expected = refused_with(privileges().post_messages(), HvStatus::InvalidParameter);
    for message_type in [0, 0x8000_0000, 0x8000_0010, 0xFFFF_FFFF] {
        ensure_status(post_message(NOWHERE, message_type, 8), expected)?;
    }
    Ok(())
}

fn posting_too_large_a_payload_is_refused() -> Outcome {
    let expected = refused_with(privileges().post_messages(), HvStatus::InvalidParameter);
    for size in [241, 256, u32::MAX] {
        ensure_status(post_message(NOWHERE, 1, size), expected)?;
    }
    Ok(())
}

fn connection_ids_have_24_bits() -> Outcome {
    ensure_refused(post_message(0x0100_0001, 1, 8))?;
    ensure_refused(signal_event(0x0100_0001, 0))
}

fn signaling_to_a_connection_that_is_not_there_is_refused() -> Outcome {
    let expected = refused_with(privileges().signal_events(), HvStatus::InvalidConnectionId);
    ensure_status(signal_event(NOWHERE, 0), expected)
}

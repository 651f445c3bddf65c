//! Hypercalls (TLFS 3): how handlers are written. One parser serves all calling conventions; a handler sees typed
//! input that was copied out of the guest and typed output that is copied back for it.

use engine::EngineError;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use tlfs::{CallCode, HvStatus, Vtl};

use crate::{Error, Partition, Vp};

/// A hypercall that is being executed.
pub(crate) struct Call<'a> {
    /// The VP that makes the call.
    pub(crate) vp: &'a mut Vp,
    /// Another VP that the call needs and that is stopped, after a handler asked for it by [`Stop::NeedsVp`].
    pub(crate) other: Option<&'a mut Vp>,
    /// The variable part of the header (TLFS 3.7.1).
    pub(crate) variable: &'a [u64],
    /// Ticks of the clock.
    pub(crate) now: u64,
}

impl Call<'_> {
    /// The VTL that makes the call.
    pub(crate) fn vtl(&self) -> Vtl {
        self.vp.active_vtl()
    }

    pub(crate) fn partition(&self) -> &Partition {
        self.vp.partition()
    }

    /// The VP of index `index`: the caller, or another one that is stopped.
    ///
    /// # Errors
    /// `INVALID_VP_INDEX` if there is none; [`Stop::NeedsVp`] if it is not stopped yet, so ask before changing
    /// anything.
    pub(crate) fn target(&mut self, index: u32) -> Result<&mut Vp, Stop> {
        if index == self.vp.index() || index == VP_INDEX_SELF {
            return Ok(self.vp);
        }
        if index >= self.vp.partition.config.vps {
            return Err(HvStatus::InvalidVpIndex.into());
        }
        match &mut self.other {
            Some(other) if other.index() == index => Ok(other),
            _ => Err(Stop::NeedsVp(index)),
        }
    }
}

/// HV_VP_INDEX_SELF (TLFS 7.8.1).
pub(crate) const VP_INDEX_SELF: u32 = u32::MAX - 1;

/// Why a handler could not finish.
#[derive(Debug)]
pub(crate) enum Stop {
    /// The call ends with this status, not SUCCESS.
    Status(HvStatus),
    /// The call is made again when that VP is stopped. Completed reps count.
    NeedsVp(u32),
    /// The guest executes the call again: it takes too long, or waits for something. Completed reps count.
    Again,
    /// The rules or the engine failed.
    Failed(Error),
}

impl From<HvStatus> for Stop {
    fn from(status: HvStatus) -> Self {
        Self::Status(status)
    }
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl From<EngineError> for Stop {
    fn from(error: EngineError) -> Self {
        Self::Failed(error.into())
    }
}

/// A hypercall that does one thing (TLFS 3.2).
pub(crate) trait Simple {
    /// The call code.
    const CODE: CallCode;
    /// Whether the call takes a variable header.
    const VARIABLE: bool = false;
    /// The input; `()` for none.
    type Input: FromBytes + Immutable + KnownLayout;
    /// The output; `()` for none. Written only on success.
    type Output: IntoBytes + Immutable;

    /// Executes the call.
    fn call(call: &mut Call<'_>, input: &Self::Input) -> Result<Self::Output, Stop>;
}

/// A hypercall that does the same for a list of elements (TLFS 3.2).
pub(crate) trait Rep {
    /// The call code.
    const CODE: CallCode;
    /// Whether the call takes a variable header.
    const VARIABLE: bool = false;
    /// Most elements that are handled before the guest may take interrupts again (TLFS 3.3).
    const BATCH: usize = 128;
    /// What comes before the elements.
    type Header: FromBytes + Immutable + KnownLayout;
    /// An input element; `()` for none.
    type Input: FromBytes + Immutable;
    /// An output element; `()` for none.
    type Output: FromZeros + IntoBytes + Immutable;

    /// Executes the call for `input`, the elements that are to be done now, at most [`Self::BATCH`]; `output` is as
    /// long and zeroed. `done` is 0 and must count the elements that are completed, also on failure.
    fn call(
        call: &mut Call<'_>,
        header: &Self::Header,
        input: &[Self::Input],
        output: &mut [Self::Output],
        done: &mut usize,
    ) -> Result<(), Stop>;
}

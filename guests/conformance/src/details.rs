//! Where the reasons of verdicts are kept: there is no heap, and a verdict must stay small.

use core::fmt::{self, Write};

use runtime::cell::Global;

/// Bytes for all reasons of a run together.
const ROOM: usize = 64 * 1024;
/// The most bytes of one reason; what is beyond is cut off.
const LONGEST: usize = 240;

static STORE: Global<[u8; ROOM]> = Global::new([0; ROOM]);
static USED: Global<usize> = Global::new(0);

/// Writes into a piece of the store, on one line.
struct Writer {
    place: &'static mut [u8],
    length: usize,
}

impl Write for Writer {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for character in text.chars() {
            let character = if character == '\n' { ' ' } else { character };
            let end = self.length + character.len_utf8();
            character.encode_utf8(self.place.get_mut(self.length..end).ok_or(fmt::Error)?);
            self.length = end;
        }
        Ok(())
    }
}

/// Formats a reason and keeps it for ever.
pub fn keep(reason: fmt::Arguments<'_>) -> &'static str {
    let start = USED.get();
    let end = ROOM.min(start + LONGEST);
    // SAFETY: this piece of the store was not given out before, and what is not used of it is given out next.
    let place =
        unsafe { &mut *core::ptr::slice_from_raw_parts_mut(STORE.pointer().cast::<u8>().add(start), end - start) };
    let mut writer = Writer { place, length: 0 };
    // What does not fit is cut off.
    let _ = writer.write_fmt(reason);
    let Writer { place, length } = writer;
    USED.set(start + length);
    str::from_utf8(&place[..length]).unwrap_or("")
}

//! Whether a processor is in the guest, and how to wait until it is not.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use engine::Kick;

/// Counts a processor's entries into and exits from the guest.
///
/// Who takes something away from processors changes the mapping, then the generation, then looks here; a processor
/// makes its count odd here, then looks at the generation, and forgets what it had cached if that has changed. Both
/// sides are sequentially consistent, so either the processor sees the new generation before it uses anything
/// cached, or the other side sees the odd count, kicks, and waits for the count to change. A processor that is kicked
/// leaves within one block of instructions and waits for nobody on its way out, so the wait ends.
pub(crate) struct Presence {
    entries: AtomicU64,
    kick: Arc<dyn Kick>,
}

impl Presence {
    pub(crate) fn new(kick: Arc<dyn Kick>) -> Self {
        Self { entries: AtomicU64::new(0), kick }
    }

    /// To be called before the processor looks at the generation.
    pub(crate) fn enter(&self) {
        self.entries.fetch_add(1, Ordering::SeqCst);
    }

    /// To be called when the processor has stopped using guest memory.
    pub(crate) fn leave(&self) {
        self.entries.fetch_add(1, Ordering::Release);
    }

    fn is_inside(&self) -> bool {
        self.entries.load(Ordering::SeqCst) % 2 == 1
    }

    /// Asks the processor to leave if it is inside.
    pub(crate) fn interrupt(&self) {
        if self.is_inside() {
            self.kick.kick();
        }
    }

    /// Returns when the processor is outside, or has been since the call.
    pub(crate) fn wait(&self) {
        let seen = self.entries.load(Ordering::SeqCst);
        if seen.is_multiple_of(2) {
            return;
        }
        for attempt in 0_u32.. {
            if self.entries.load(Ordering::Acquire) != seen {
                return;
            }
            // The processor may have come in after `interrupt` looked.
            self.kick.kick();
            if attempt < 100 {
                std::hint::spin_loop();
            } else {
                thread::sleep(Duration::from_micros(10));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;

    struct Flag(AtomicBool);

    impl Kick for Flag {
        fn kick(&self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }

    #[test]
    fn waits_only_for_a_processor_that_is_inside() {
        let flag = Arc::new(Flag(AtomicBool::new(false)));
        let presence = Arc::new(Presence::new(Arc::clone(&flag) as Arc<dyn Kick>));
        presence.interrupt();
        presence.wait();
        assert!(!flag.0.load(Ordering::SeqCst));
        presence.enter();
        let processor = {
            let (flag, presence) = (Arc::clone(&flag), Arc::clone(&presence));
            thread::spawn(move || {
                while !flag.0.load(Ordering::SeqCst) {
                    thread::yield_now();
                }
                presence.leave();
            })
        };
        presence.wait();
        assert!(!presence.is_inside());
        processor.join().unwrap();
    }
}

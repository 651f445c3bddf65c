//! Properties that hold whatever happens.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

/// Anything that a guest or a device can do.
#[derive(Debug, Clone)]
enum Step {
    Read(u64, usize),
    Write(u64, u32),
    ReadMsr(u32),
    WriteMsr(u32, u64),
    Deliver(Interrupt),
    Pin(Lint, bool),
    Take,
    Cr8(u8),
    TscOffset(u64),
}

fn register() -> impl Strategy<Value = u64> {
    prop_oneof![4 => (0..0x40_u64).prop_map(|number| number << 4), 1 => 0..0x1000_u64]
}

fn value() -> impl Strategy<Value = u64> {
    prop_oneof![any::<u64>(), 0..0x200_u64, (0..64_u32).prop_map(|bit| 1 << bit), Just(0), Just(0x1FF), Just(u64::MAX)]
}

fn step() -> impl Strategy<Value = Step> {
    let base = (any::<bool>(), any::<bool>())
        .prop_map(|(x2apic, enable)| BASE_ADDRESS | u64::from(x2apic) << 10 | u64::from(enable) << 11);
    prop_oneof![
        1 => (register(), 0..9_usize).prop_map(|(offset, size)| Step::Read(offset, size)),
        4 => (register(), value()).prop_map(|(offset, value)| Step::Write(offset, value as u32)),
        1 => (0x800..0x900_u32).prop_map(Step::ReadMsr),
        4 => (0x800..0x840_u32, value()).prop_map(|(index, value)| Step::WriteMsr(index, value)),
        1 => value().prop_map(|value| Step::WriteMsr(MSR_TSC_DEADLINE, value)),
        1 => base.prop_map(|value| Step::WriteMsr(MSR_APIC_BASE, value)),
        1 => (0..8_u32, any::<u8>(), any::<bool>()).prop_map(|(mode, vector, level)| {
            let mode = DeliveryMode::from_bits(mode).unwrap_or(DeliveryMode::Fixed);
            Step::Deliver(Interrupt { mode, vector, level })
        }),
        1 => (any::<bool>(), any::<bool>())
            .prop_map(|(one, level)| Step::Pin(if one { Lint::One } else { Lint::Zero }, level)),
        2 => Just(Step::Take),
        1 => any::<u8>().prop_map(Step::Cr8),
        1 => any::<u64>().prop_map(Step::TscOffset),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever happens at whatever time: nothing panics and the registers keep their promises.
    #[test]
    fn invariants_hold(steps in proptest::collection::vec((step(), any::<u64>()), 1..200)) {
        let mut apic = LocalApic::new(config(7));
        for (step, now) in steps {
            match step {
                Step::Read(offset, size) => apic.read_page(offset, &mut vec![0; size], now),
                Step::Write(offset, value) => {
                    write(&mut apic, offset, value, now);
                }
                Step::ReadMsr(index) => {
                    let readable = apic.read_msr(index, now);
                    prop_assert!(readable.is_err() || apic.mode() == Mode::X2Apic);
                }
                Step::WriteMsr(index, value) => {
                    let before = apic.clone();
                    let written = apic.write_msr(index, value, now);
                    if written.is_err() {
                        let mut untouched = before;
                        untouched.advance(now);
                        prop_assert_eq!(&apic, &untouched);
                    }
                }
                Step::Deliver(interrupt) => apic.deliver(interrupt),
                Step::Pin(pin, level) => apic.set_lint(pin, level),
                Step::Take => {
                    take(&mut apic);
                }
                Step::Cr8(priority) => apic.set_cr8(priority),
                Step::TscOffset(offset) => apic.set_tsc_offset(offset),
            }
            if let Some(vector) = apic.pending_interrupt() {
                prop_assert!(vector >= LOWEST_VECTOR);
                prop_assert!(apic.state().irr.contains(vector));
                prop_assert!(vector >> 4 > apic.processor_priority() >> 4);
                prop_assert_ne!(apic.mode(), Mode::Disabled);
            }
            prop_assert!(apic.processor_priority() >> 4 >= apic.cr8());
            prop_assert_eq!(LocalApic::restore(*apic.config(), apic.state().clone()), apic.clone());
        }
    }

    /// The deadline is exact: nothing before it, the interrupt at it.
    #[test]
    fn deadlines_are_exact(
        periodic: bool, code in 0..16_u32, count in 1..=u32::MAX, start in 0..1_u64 << 60,
        tsc_frequency in 1..=10_000_000_000_u64, timer_frequency in 1..=10_000_000_000_u64,
    ) {
        let clock = Rate {
            tsc_frequency: NonZeroU64::new(tsc_frequency).unwrap(),
            frequency: NonZeroU64::new(timer_frequency).unwrap(),
        };
        let mut apic = LocalApic::new(Config { clock, ..config(0) });
        apic.software_enable();
        write(&mut apic, LVT_TIMER, 0x40 | if periodic { PERIODIC } else { 0 }, start);
        write(&mut apic, DIVIDE, code & 0b1011, start);
        write(&mut apic, INITIAL_COUNT, count, start);
        for _ in 0..3 {
            let Some(deadline) = apic.next_deadline(start) else { break };
            prop_assert!(deadline > start);
            apic.advance(deadline - 1);
            prop_assert_eq!(apic.pending_interrupt(), None);
            apic.advance(deadline);
            prop_assert_eq!(take(&mut apic), Some(0x40));
            apic.end_of_interrupt();
        }
    }

    /// The set of vectors against one that is obviously right.
    #[test]
    fn vector_sets(vectors in proptest::collection::vec((any::<u8>(), any::<bool>()), 0..64)) {
        let (mut set, mut model) = (VectorSet::default(), BTreeSet::new());
        let members = |set: VectorSet| (0..=255).filter(move |&vector| set.contains(vector));
        for (vector, present) in vectors {
            set.set(vector, present);
            if present { model.insert(vector); } else { model.remove(&vector); }
            prop_assert_eq!(set.highest(), model.last().copied());
            prop_assert_eq!(set.is_empty(), model.is_empty());
            prop_assert_eq!(set.contains(vector), present);
            let bit = set.register(vector >> 5) >> (vector & 31) & 1;
            prop_assert_eq!(bit != 0, present);
            prop_assert!(members(set.above(vector)).eq(model.iter().copied().filter(|&other| other > vector)));
            let above = set.above(vector);
            prop_assert!(members(set.without(&above)).eq(model.iter().copied().filter(|&other| other <= vector)));
        }
    }
}

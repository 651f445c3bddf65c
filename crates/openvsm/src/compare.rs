//! `openvsm compare`: the same guest on the software engine and on KVM. The rules must observe the same, in the same
//! order.

use tlfs::Vtl;
use vsm::Observed;

use crate::cli::{Compare, EngineName, Platform, VsmOption};
use crate::failure::Failure;
use crate::transcript::{self, End, What};
use crate::{Status, engines, images, table};

/// Parts of the conformance suite in which nothing depends on time, or on rights that KVM cannot withhold.
const PARTS: [&str; 8] = ["3.", "7.10", "13.2", "15.3", "15.5", "15.6.1.1", "15.7", "15.13.3"];
/// Exit status of a comparison that found a difference.
const DIFFERENT: u8 = 1;

/// Something that the rules observed, without the time.
type Seen = (Vtl, Observed);

/// Compares the engines and prints a table.
pub fn run(options: &Compare) -> Status {
    let protection = engines::protection(options.host.kvm_protect)?;
    if let Some(reason) = engines::kvm_trouble(&protection) {
        return Err(Failure::host(format!("KVM cannot be compared with: {reason}; see openvsm check")));
    }
    let header = ["part", "observations", "result"].map(str::to_owned).to_vec();
    let mut rows = vec![header];
    let mut different = false;
    for part in PARTS {
        let (soft, kvm) = (observe(EngineName::Soft, part, options)?, observe(EngineName::Kvm, part, options)?);
        let difference = difference(&soft, &kvm);
        different |= difference.is_some();
        rows.push(vec![part.to_owned(), soft.len().to_string(), difference.unwrap_or_else(|| "the same".to_owned())]);
    }
    for line in table::lines(&rows, &[1]) {
        println!("{line}");
    }
    Ok(if different { DIFFERENT } else { 0 })
}

/// What the rules observe of a part of the suite on one VP.
fn observe(engine: EngineName, part: &str, options: &Compare) -> Result<Vec<Seen>, Failure> {
    let vsm = vec![VsmOption::ModeBasedExecute(false)];
    let host = options.host.clone();
    let platform = Platform { engine, cpus: 1, deterministic: None, vsm, verbose: false, host };
    let mut seen = Vec::new();
    let end = transcript::run(
        images::CONFORMANCE,
        &format!("only={part}"),
        &platform,
        transcript::MEMORY,
        true,
        |_, told| {
            if let What::Observed(observation) = told.what
                && !is_a_matter_of_time(&observation.what)
            {
                seen.push((observation.vtl, comparable(observation.what)));
            }
        },
    )?;
    match end {
        End::Outcome(_) => Ok(seen),
        End::Hung(_) => Err(Failure::host(format!("part {part} hung on engine {}", engine.as_str()))),
    }
}

/// What depends on how fast an engine is: when timers fire, and how often a hypercall is to be continued.
fn is_a_matter_of_time(what: &Observed) -> bool {
    matches!(what, Observed::Hypercall { status: None, .. } | Observed::Interrupt(_) | Observed::Activity(_))
}

/// The instruction that enters the hypervisor from the hypercall page is not the same on all engines.
fn comparable(mut what: Observed) -> Observed {
    if let Observed::MemoryIntercept { fault, .. } = &mut what
        && fault.gva.is_none()
    {
        (fault.instruction_length, fault.instruction) = (0, engine::InstructionBytes::default());
    }
    what
}

/// The first difference; none if there is something to compare and all of it is the same.
fn difference(soft: &[Seen], kvm: &[Seen]) -> Option<String> {
    if soft.is_empty() {
        return Some("nothing was observed".to_owned());
    }
    let differs = soft.iter().zip(kvm).position(|(soft, kvm)| soft != kvm);
    let index = differs.or_else(|| (soft.len() != kvm.len()).then(|| soft.len().min(kvm.len())))?;
    let told = |seen: &[Seen]| seen.get(index).map_or("nothing".to_owned(), |seen| format!("{seen:?}"));
    Some(format!("observation {index} is {} on soft, and {} on kvm", told(soft), told(kvm)))
}

#[cfg(test)]
mod tests {
    use vsm::SwitchReason;

    use super::*;

    fn switch(to: Vtl) -> Seen {
        (Vtl::ZERO, Observed::Switch { to, reason: SwitchReason::Call })
    }

    #[test]
    fn the_first_difference_is_told() {
        let (one, two) = (switch(Vtl::from_bits(1)), switch(Vtl::from_bits(2)));
        assert_eq!(difference(&[one, two], &[one, two]), None);
        assert!(difference(&[], &[]).is_some());
        let told = difference(&[one, one], &[one, two]).unwrap();
        assert!(told.starts_with("observation 1 is (VTL0, Switch"), "{told}");
        let told = difference(&[one], &[one, two]).unwrap();
        assert!(told.starts_with("observation 1 is nothing on soft"), "{told}");
    }
}

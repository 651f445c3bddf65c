//! From rules to programs for the kernel.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};

use crate::rules::{self, Allowed, Condition};
use crate::{EngineNeeds, Error, Role};

/// The programs of a role: one that allows what it needs, and those that refuse a part of it with an error.
pub(crate) fn compile(role: Role, engine: EngineNeeds) -> Result<Box<[BpfProgram]>, Error> {
    let mut needed = BTreeMap::new();
    let refused = [libc::EACCES, libc::ENOSYS].map(|errno| (errno, rules::refused(errno)));
    let calls = rules::needed(role, engine).into_iter();
    let tolerated =
        refused.iter().flat_map(|(_, calls)| calls.iter().map(|&call| Allowed { call, conditions: vec![] }));
    for Allowed { call, conditions } in calls.chain(tolerated) {
        add(&mut needed, call, &conditions)?;
    }
    let mut programs = Vec::new();
    // The first to be applied must let the others be.
    for (errno, calls) in refused {
        let rules = calls.iter().map(|&call| (call, vec![])).collect();
        programs.push(program(rules, SeccompAction::Allow, SeccompAction::Errno(errno as u32))?);
    }
    programs.push(program(needed, SeccompAction::Trap, SeccompAction::Allow)?);
    Ok(programs.into())
}

/// Allows a call if all conditions hold; without any it is allowed whatever its arguments are.
fn add(needed: &mut BTreeMap<i64, Vec<SeccompRule>>, call: i64, conditions: &[Condition]) -> Result<(), Error> {
    let rules = needed.entry(call);
    if conditions.is_empty() {
        rules.or_default().clear();
        return Ok(());
    }
    let condition = |condition: &Condition| match *condition {
        Condition::Is { argument, value } => {
            SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value.into())
        }
        Condition::Bits { argument, mask, value } => {
            SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::MaskedEq(mask.into()), value.into())
        }
    };
    let rule = conditions.iter().map(condition).collect::<Result<_, _>>().and_then(SeccompRule::new);
    rules.or_default().push(rule.map_err(wrong)?);
    Ok(())
}

fn program(
    rules: BTreeMap<i64, Vec<SeccompRule>>,
    otherwise: SeccompAction,
    action: SeccompAction,
) -> Result<BpfProgram, Error> {
    let filter = SeccompFilter::new(rules, otherwise, action, TargetArch::x86_64).map_err(wrong)?;
    filter.try_into().map_err(wrong)
}

fn wrong(error: impl std::fmt::Display) -> Error {
    Error::Filter(error.to_string())
}

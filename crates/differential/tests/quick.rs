//! A quick comparison with the host's processor, over every instruction form.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

use differential::forms::forms;
use differential::runner::{Limit, run};

const CASES_PER_FORM: u32 = 12;

#[test]
fn every_user_mode_form_does_what_the_host_does() {
    let forms = forms();
    let report = run(&forms, 0x0DD5_EED5, Limit::CasesPerForm(CASES_PER_FORM)).expect("the host runs instructions");
    let text: String =
        report.failures.iter().map(|(form, (count, first))| format!("{form} ({count} differ):\n{first}")).collect();
    assert!(report.failures.is_empty(), "{} of {} forms differ:\n{text}", report.failures.len(), report.forms);
    assert!(report.skipped.len() * 20 < forms.len(), "no cases of {:?}", report.skipped);
}

//! HvCallGetVpRegisters and HvCallSetVpRegisters (TLFS 7.10.1, 7.10.2).

use tlfs::cpuid::PartitionPrivileges;
use tlfs::hypercalls::register::{RegisterAssociation, VpRegistersHeader};
use tlfs::{CallCode, HvStatus, InputVtl, PartitionId, RegisterName, RegisterValue, VpIndex, Vtl};

use crate::Vp;
use crate::hypercall::{Call, Rep, Stop};
use crate::intercept::Attempt;
use crate::startup::Permission;

/// The VP and VTL that a call acts on: the caller's own VTL or a lower one, of any VP of the partition. Errors come in
/// this order: partition, VP, VTL.
pub(crate) fn resolve<'a>(
    call: &'a mut Call<'_>,
    partition: PartitionId,
    vp: VpIndex,
    vtl: InputVtl,
) -> Result<(&'a mut Vp, Vtl), Stop> {
    call.check_partition(partition)?;
    let own = call.vtl();
    let target = call.target(vp)?;
    let vtl = vtl.vtl()?.unwrap_or(own);
    if vtl > own {
        return Err(HvStatus::AccessDenied.into());
    }
    if target.state(vtl).is_none() {
        return Err(HvStatus::InvalidVtlState.into());
    }
    Ok((target, vtl))
}

const ACCESS_VP_REGISTERS: PartitionPrivileges = PartitionPrivileges::new().with_access_vp_registers(true);

pub(crate) struct GetVpRegisters;

impl Rep for GetVpRegisters {
    const CODE: CallCode = CallCode::GetVpRegisters;
    const PRIVILEGES: PartitionPrivileges = ACCESS_VP_REGISTERS;
    type Header = VpRegistersHeader;
    type Input = RegisterName;
    type Output = RegisterValue;

    fn call(
        call: &mut Call<'_>,
        header: &VpRegistersHeader,
        input: &[RegisterName],
        output: &mut [RegisterValue],
        done: &mut usize,
    ) -> Result<(), Stop> {
        let now = call.now;
        let (vp, vtl) = resolve(call, header.partition_id, header.vp_index, header.target_vtl)?;
        for (&name, value) in input.iter().zip(output) {
            *value = vp.register(vtl, name, now)?;
            *done += 1;
        }
        Ok(())
    }
}

pub(crate) struct SetVpRegisters;

impl Rep for SetVpRegisters {
    const CODE: CallCode = CallCode::SetVpRegisters;
    const PRIVILEGES: PartitionPrivileges = ACCESS_VP_REGISTERS;
    type Header = VpRegistersHeader;
    type Input = RegisterAssociation;
    type Output = ();

    fn call(
        call: &mut Call<'_>,
        header: &VpRegistersHeader,
        input: &[RegisterAssociation],
        _: &mut [()],
        done: &mut usize,
    ) -> Result<(), Stop> {
        let (now, own) = (call.now, call.vtl());
        let permission = call.vp.startup_permission(own);
        let (vp, vtl) = resolve(call, header.partition_id, header.vp_index, header.target_vtl)?;
        for register in input {
            // What a VTL may not do by an instruction it may not do by a call either.
            let startup = if vp.is_startup(vtl, register) { permission } else { Permission::Granted };
            match startup {
                Permission::Denied => return Err(HvStatus::AccessDenied.into()),
                Permission::Intercepted(_) => return Err(Stop::Intercepted(Attempt::Vp(vp.index()))),
                Permission::Granted if vp.intercepts_write(own, register.name) => {
                    return Err(HvStatus::AccessDenied.into());
                }
                Permission::Granted => {}
            }
            vp.set_register(vtl, (register.name, register.value), now)?;
            *done += 1;
        }
        Ok(())
    }
}

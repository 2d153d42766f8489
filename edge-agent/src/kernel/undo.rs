//! Takes everything of ours out of the kernel.

use super::{
    error::KernelError,
    plan::{TableStep, plan_removal},
    reconcile::Netlink,
    return_path,
    sk_lookup::SkLookup,
};

/// What [`undo`] removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Undone {
    pub routes: usize,
    pub table: bool,
    /// The sk_lookup program with its maps and pins.
    pub program: bool,
    /// Objects that brought answers of origins back.
    pub return_path: usize,
}

/// Removes the sk_lookup program, the nftables tables, routes and rules that an
/// agent made, in the network namespace of the calling thread. An agent that is
/// still running would put them back, so end it first.
///
/// # Errors
///
/// What the kernel refused. A table of our name that is not ours is left alone
/// and is no error.
pub async fn undo() -> Result<Undone, KernelError> {
    let program = SkLookup::open()?.remove()?;
    let kernel = Netlink::open()?;
    let return_path = return_path::remove(&kernel).await?;
    let plan = kernel.settle(|observed| Ok(plan_removal(observed))).await?;
    Ok(Undone {
        routes: plan.remove_routes.len(),
        table: plan.table.contains(&TableStep::DeleteTable),
        program,
        return_path,
    })
}

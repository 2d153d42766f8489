//! Whom the app lets in, and how much of it each may have.

use std::net::IpAddr;

use anyport_model::{
    access::{Action, Verdict},
    limits::Limits,
    resource::{App, Transport},
};

use crate::{console::Console, failure::Failure};

/// The rule that decided about a client, or where none is named, whether there
/// are any.
pub(super) fn explain_access(
    console: &mut Console,
    app: &App,
    from: Option<IpAddr>,
) -> Result<(), Failure> {
    let access = &app.access;
    let Some(from) = from else {
        if access.is_open() {
            return Ok(());
        }
        let which = if app.identity.trusted_senders.is_empty() {
            "--from ADDR says which one decides"
        } else {
            "which one decides is a matter of the PROXY header"
        };
        return Ok(console.line(format_args!(
            "  access   {} by default, and by {} rules; {which}",
            access.default_action(),
            access.rules().len(),
        ))?);
    };
    let verdict = access.decide(from);
    let becomes = match (verdict.action, app.transport) {
        (Action::Allow, _) => "is let in",
        (Action::Deny, Transport::Tcp) => "is reset, status 403",
        (Action::Deny, Transport::Udp) => "is not heard, status 403",
    };
    let by = words(verdict);
    Ok(console.line(format_args!("  source   {from} {becomes}: {by}"))?)
}

fn words(verdict: Verdict) -> String {
    match verdict.rule {
        Some(net) => format!("the access rule for {net} says {}", verdict.action),
        None => format!(
            "no access rule holds it, and the default is {}",
            verdict.action
        ),
    }
}

pub(super) fn explain_limits(console: &mut Console, limits: &Limits) -> Result<(), Failure> {
    let all = [
        (limits.connections, "open at a time"),
        (limits.connections_per_source, "open from one source"),
        (
            limits.new_connections_per_source,
            "new a second from one source",
        ),
        (
            limits.bytes_per_second_per_connection,
            "bytes a second each way of a connection",
        ),
    ];
    let set: Vec<String> = all
        .iter()
        .filter_map(|(limit, what)| Some(format!("{} {what}", (*limit)?)))
        .collect();
    if set.is_empty() {
        return Ok(());
    }
    let set = set.join(", ");
    Ok(console.line(format_args!("  limits   on each edge: {set}"))?)
}

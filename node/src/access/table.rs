//! Which method is for whom: the one place that says so.

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use super::{
    caller::Caller,
    role::{Role, listed},
};

/// Whoever has a role.
const ALL: &[Role] = &Role::ALL;
const READ: &[Role] = &[Role::Operator, Role::Viewer];
const WRITE: &[Role] = &[Role::Operator];
/// Each under its own name only, which the service checks.
const NODES: &[Role] = &[Role::Edge, Role::Balancer];
const EDGES: &[Role] = &[Role::Edge];
const BALANCERS: &[Role] = &[Role::Balancer];
/// Served on a Unix socket between the agents of one edge only.
const NOBODY: &[Role] = &[];

/// Every method of every service, as `/PACKAGE.SERVICE/METHOD`, and the roles that
/// may call it. What is not here is offered to nobody who has a certificate.
pub const TABLE: &[(&str, &[Role])] = &[
    ("/anyport.v1.ConfigService/Apply", WRITE),
    ("/anyport.v1.ConfigService/Delete", WRITE),
    ("/anyport.v1.ConfigService/Get", READ),
    ("/anyport.v1.ConfigService/History", READ),
    ("/anyport.v1.ConfigService/List", READ),
    ("/anyport.v1.ConfigService/ListNodes", READ),
    ("/anyport.v1.ConfigService/Rollback", WRITE),
    ("/anyport.v1.ConfigService/Promote", WRITE),
    ("/anyport.v1.ConfigService/Watch", READ),
    ("/anyport.v1.ConfigService/WatchNodes", READ),
    ("/anyport.v1.DiscoveryService/Sync", NODES),
    ("/anyport.v1.DiscoveryService/WatchBalancers", BALANCERS),
    ("/anyport.v1.BalancerService/GetHealth", READ),
    ("/anyport.v1.BalancerService/ReportOrigins", EDGES),
    ("/anyport.v1.BalancerService/WatchVerdicts", BALANCERS),
    ("/anyport.v1.BalancerService/WatchWeights", EDGES),
    ("/anyport.v1.EdgeService/Drain", WRITE),
    ("/anyport.v1.EdgeService/GetStatus", READ),
    ("/anyport.v1.EdgeService/ListConnections", READ),
    ("/anyport.v1.EdgeService/StreamEvents", READ),
    ("/anyport.v1.FinishingService/Obey", NOBODY),
    ("/grpc.health.v1.Health/Check", ALL),
    ("/grpc.health.v1.Health/Watch", ALL),
    (
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        ALL,
    ),
    (
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        ALL,
    ),
];

/// `google.rpc.ErrorInfo` of a refusal.
const REASON: &str = "ROLE_NOT_ALLOWED";
const DOMAIN: &str = "anyport";

/// Who may call the method at this path; `None`: no such method.
pub fn allowed(path: &str) -> Option<&'static [Role]> {
    let entry = TABLE.iter().find(|(method, _)| *method == path);
    entry.map(|(_, roles)| *roles)
}

/// May the caller call the method at this path?
///
/// # Errors
/// PERMISSION_DENIED, saying who may; UNIMPLEMENTED for a method that is not in the
/// table.
pub(super) fn judge(path: &str, caller: &Caller) -> Result<(), Status> {
    let Some(certified) = &caller.certified else {
        return Ok(());
    };
    let method = path.rsplit_once('.').map_or(path, |(_, method)| method);
    let Some(roles) = allowed(path) else {
        return Err(Status::unimplemented(format!("there is no {method}")));
    };
    if certified.roles.has_any(roles) {
        return Ok(());
    }
    let message = if certified.roles.is_empty() {
        format!(
            "the certificate `{}` has no role here: its subject needs O=anyport:ROLE, where ROLE \
             is {}",
            certified.subject,
            Role::words()
        )
    } else {
        let (held, name) = (&certified.roles, &certified.name);
        let needs = listed(roles);
        format!("{held} `{name}` may not call {method}: needs {needs}")
    };
    let roles: Vec<&str> = roles.iter().map(|role| role.as_str()).collect();
    let metadata = [
        ("method", path.to_owned()),
        ("subject", certified.subject.clone()),
        ("needs", roles.join(",")),
    ]
    .map(|(key, value)| (key.to_owned(), value));
    let details = ErrorDetails::with_error_info(REASON, DOMAIN, metadata);
    Err(Status::with_error_details(
        Code::PermissionDenied,
        message,
        details,
    ))
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::SystemTime};

    use super::*;
    use crate::access::{Certified, Roles};

    fn caller(roles: impl IntoIterator<Item = Role>) -> Caller {
        let certified = Certified {
            subject: "CN=ana".to_owned(),
            name: "ana".to_owned(),
            roles: Roles::from_iter(roles),
            serial: String::new(),
            issuer: String::new(),
            expires: SystemTime::UNIX_EPOCH,
        };
        Caller {
            address: None,
            certified: Some(Arc::new(certified)),
        }
    }

    #[test]
    fn a_refusal_says_who_may() {
        let apply = "/anyport.v1.ConfigService/Apply";
        let refused = judge(apply, &caller([Role::Viewer])).expect_err("a viewer");
        assert_eq!(refused.code(), Code::PermissionDenied);
        assert_eq!(
            refused.message(),
            "viewer `ana` may not call ConfigService/Apply: needs operator"
        );
        let info = refused.get_details_error_info().expect("details");
        assert_eq!(info.reason, REASON);
        assert_eq!(info.metadata["needs"], "operator");
        judge(apply, &caller([Role::Viewer, Role::Operator])).expect("one of two will do");
        let refused = judge(apply, &caller([])).expect_err("no role");
        assert!(
            refused
                .message()
                .starts_with("the certificate `CN=ana` has no role here"),
            "{refused}"
        );
    }

    #[test]
    fn what_is_not_in_the_table_is_for_nobody_with_a_certificate() {
        let path = "/anyport.v1.ConfigService/Forget";
        let refused = judge(path, &caller(Role::ALL)).expect_err("not in the table");
        assert_eq!(refused.code(), Code::Unimplemented);
        judge(path, &Caller::default()).expect("the router knows better");
    }

    #[test]
    fn only_edges_come_near_private_keys_and_only_operators_write() {
        let may = |path: &str, role| allowed(path).expect("an entry").contains(&role);
        for role in Role::ALL {
            let operator = role == Role::Operator;
            for method in ["Apply", "Delete", "Rollback", "Promote"] {
                let path = format!("/anyport.v1.ConfigService/{method}");
                assert_eq!(may(&path, role), operator, "{path}");
            }
            assert_eq!(may("/anyport.v1.EdgeService/Drain", role), operator);
            let node = matches!(role, Role::Edge | Role::Balancer);
            assert_eq!(may("/anyport.v1.DiscoveryService/Sync", role), node);
        }
    }
}

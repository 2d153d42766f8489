//! What a certificate lets its holder be.

use std::{collections::BTreeSet, fmt, str::FromStr};

/// Stands before a role in the organization (O) of a certificate's subject, so that
/// certificates of the same authority that are for something else have no role.
const PREFIX: &str = "anyport:";

/// A part in the fleet, or of those who look after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Serves the configuration.
    ConfigService,
    /// Serves weights, and subscribes to pools and monitors.
    Balancer,
    /// Subscribes to everything, with private keys.
    Edge,
    /// Reads and writes, but sees no private key.
    Operator,
    /// Reads, but sees no private key.
    Viewer,
}

/// The roles of one certificate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Roles(BTreeSet<Role>);

/// A word that is no role.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no role; right is {roles}", roles = Role::words())]
pub struct RoleError(String);

impl Role {
    /// All there are.
    pub const ALL: [Role; 5] = [
        Role::ConfigService,
        Role::Balancer,
        Role::Edge,
        Role::Operator,
        Role::Viewer,
    ];

    /// As it stands in certificates and on command lines.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::ConfigService => "config-service",
            Role::Balancer => "balancer",
            Role::Edge => "edge",
            Role::Operator => "operator",
            Role::Viewer => "viewer",
        }
    }

    /// The organization that gives this role to a certificate: `anyport:edge`.
    pub fn organization(self) -> String {
        Roles::from_iter([self]).organization()
    }

    /// `config-service, balancer, edge, operator or viewer`.
    pub fn words() -> String {
        listed(&Self::ALL)
    }
}

/// `edge, operator or viewer`.
pub(super) fn listed(roles: &[Role]) -> String {
    match roles {
        [] => "nobody".to_owned(),
        [only] => only.to_string(),
        [most @ .., last] => {
            let most: Vec<&str> = most.iter().map(|role| role.as_str()).collect();
            format!("{} or {last}", most.join(", "))
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Role {
    type Err = RoleError;

    fn from_str(text: &str) -> Result<Self, RoleError> {
        let mut all = Self::ALL.into_iter();
        all.find(|role| role.as_str() == text)
            .ok_or_else(|| RoleError(text.to_owned()))
    }
}

impl Roles {
    /// The organization that gives these roles to a certificate:
    /// `anyport:balancer+edge`. Several organizations do as well; but not every
    /// library writes more than one.
    pub fn organization(&self) -> String {
        let roles: Vec<&str> = self.0.iter().map(|role| role.as_str()).collect();
        format!("{PREFIX}{}", roles.join("+"))
    }

    /// The roles that an organization gives; words that are none give none.
    pub fn of_organization(organization: &str) -> Self {
        let roles = organization.strip_prefix(PREFIX).unwrap_or_default();
        let roles = roles.split('+').filter_map(|role| role.parse().ok());
        roles.collect()
    }

    /// These and the others.
    pub fn and(mut self, others: Roles) -> Self {
        self.0.extend(others.0);
        self
    }

    /// Is this one of them?
    pub fn has(&self, role: Role) -> bool {
        self.0.contains(&role)
    }

    /// Is one of these one of them?
    pub fn has_any(&self, wanted: &[Role]) -> bool {
        wanted.iter().any(|role| self.has(*role))
    }

    /// Are there none?
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<Role> for Roles {
    fn from_iter<I: IntoIterator<Item = Role>>(roles: I) -> Self {
        Self(roles.into_iter().collect())
    }
}

/// `edge, operator`.
impl fmt::Display for Roles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, role) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            write!(f, "{comma}{role}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_role_is_read_as_it_is_written() {
        for role in Role::ALL {
            assert_eq!(role.as_str().parse(), Ok(role));
            let organization = format!("anyport:{role}");
            assert_eq!(role.organization(), organization);
            assert_eq!(
                Roles::of_organization(&organization),
                Roles::from_iter([role])
            );
        }
        let several = Roles::from_iter([Role::Edge, Role::Balancer]);
        assert_eq!(several.organization(), "anyport:balancer+edge");
        assert_eq!(Roles::of_organization("anyport:edge+balancer+x"), several);
        for organization in [
            "edge",
            "anyport:",
            "anyport:Edge",
            "anyport:admin",
            "Acme",
            "",
        ] {
            assert!(
                Roles::of_organization(organization).is_empty(),
                "{organization}"
            );
        }
        let error = "admin".parse::<Role>().expect_err("no role").to_string();
        assert_eq!(
            error,
            "\"admin\" is no role; right is config-service, balancer, edge, operator or viewer"
        );
    }
}

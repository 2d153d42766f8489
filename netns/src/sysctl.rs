//! Kernel settings of a namespace (`sysctl`).
//!
//! Names are paths below `/proc/sys`, such as `net/ipv4/conf/eth0/rp_filter`, rather than the dotted
//! form, in which an interface called `eth0.7` cannot be named. Only `net/` is accepted: everything
//! else belongs to the whole host, also when it is written from inside a namespace.

use std::fs;
use std::path::{Component, Path, PathBuf};

use crate::error::{Error, Result};
use crate::namespace::Namespace;

/// Reads a setting, without the final newline.
///
/// # Errors
///
/// Where the kernel has no such setting.
pub fn get(namespace: &Namespace, name: &str) -> Result<String> {
    let path = network_setting(name)?;
    namespace
        .run(|| fs::read_to_string(&path))?
        .map(|value| value.trim_end().to_owned())
        .map_err(|source| Error::system(namespace.label(), format!("reading {path:?}"), source))
}

/// Writes a setting.
///
/// # Errors
///
/// Where the kernel has no such setting, or refuses the value.
pub fn set(namespace: &Namespace, name: &str, value: &str) -> Result<()> {
    let path = network_setting(name)?;
    namespace
        .run(|| fs::write(&path, value))?
        .map_err(|source| {
            let action = format!("writing {value:?} to {path:?}");
            Error::system(namespace.label(), action, source)
        })
}

fn network_setting(name: &str) -> Result<PathBuf> {
    let inside_net = name
        .strip_prefix("net/")
        .map(Path::new)
        .filter(|rest| !rest.as_os_str().is_empty())
        .filter(|rest| {
            rest.components()
                .all(|component| matches!(component, Component::Normal(_)))
        });
    match inside_net {
        Some(rest) => Ok(Path::new("/proc/sys/net").join(rest)),
        None => Err(Error::NotANetworkSetting {
            name: name.to_owned(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_paths_below_net_are_settings_of_a_namespace() {
        for name in [
            "net/ipv4/ip_forward",
            "net/ipv4/conf/eth0.7/rp_filter",
            "net/core/somaxconn",
        ] {
            let path = network_setting(name).expect("a network setting");
            assert_eq!(path, Path::new("/proc/sys").join(name));
        }
        for name in [
            "",
            "net",
            "net/",
            "net.ipv4.ip_forward",
            "kernel/hostname",
            "/net/ipv4/ip_forward",
            "net//etc/passwd",
            "net/../kernel/hostname",
            "net/ipv4/../../kernel/hostname",
        ] {
            assert!(
                matches!(network_setting(name), Err(Error::NotANetworkSetting { .. })),
                "{name:?} was taken"
            );
        }
    }
}

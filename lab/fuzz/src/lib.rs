//! What must hold of every parser, whatever bytes it is given. `make fuzz` searches for bytes for
//! which it does not; `make test` replays those that were found worth keeping, in `corpus/`.

mod client_hello;
mod manifest;
mod proxy_protocol;
mod wire;

/// A parser, and what must hold of it.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Also the name of its folder in `corpus/`.
    pub name: &'static str,
    /// Panics where something does not hold.
    pub check: fn(&[u8]),
}

/// Every target.
pub const TARGETS: &[Target] = &[
    Target {
        name: "resource",
        check: wire::resource,
    },
    Target {
        name: "update",
        check: wire::update,
    },
    Target {
        name: "client-hello",
        check: client_hello::client_hello,
    },
    Target {
        name: "proxy-header",
        check: proxy_protocol::header,
    },
    Target {
        name: "simple-proxy",
        check: proxy_protocol::simple,
    },
    Target {
        name: "manifest",
        check: manifest::manifest,
    },
];

/// The target of a name.
pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}

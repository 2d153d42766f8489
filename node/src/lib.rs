//! What every process of the fleet shares, and nothing about what the fleet
//! does: no word of apps or pools appears here. Which role may call which method
//! is here all the same, so that no service can be served without being asked.
//!
//! A service's main function reads top-down through these modules:
//!
//! 1. [`boot`] starts the runtime and [`telemetry`], and hands over a [`drain::Drain`]
//!    that SIGTERM begins.
//! 2. [`identity`] turns the `--tls-*` flags into what may be listened on and dialled.
//! 3. [`rpc`] serves gRPC with health and reflection, and dials other services;
//!    trace context crosses both ways. [`access`] says who may call what.
//! 4. [`ready`] gathers what the service still waits for; [`admin`] tells it over
//!    HTTP together with the [`metrics`], and `grpc.health.v1` tells it over gRPC.
//!
//! Nothing here is a process global except what the process has only one of (the
//! log, the trace exporter, the signal handlers, the panic hook), because one
//! process may run several services.

#![forbid(unsafe_code)]

pub mod access;
pub mod admin;
pub mod boot;
pub mod drain;
pub mod identity;
mod layer;
pub mod listen;
pub mod metrics;
pub mod ready;
pub mod rpc;
pub mod telemetry;

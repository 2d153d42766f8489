//! The wire: generated code of `anyport.v1`, and the one place where wire
//! messages become [`anyport_model`] types and back.

pub mod convert;
pub mod event_log;
pub mod sync;

/// Generated messages, clients and servers of package `anyport.v1`.
#[allow(
    clippy::all,
    clippy::unwrap_used,
    unreachable_pub,
    missing_docs,
    reason = "generated"
)]
pub mod v1 {
    tonic::include_proto!("anyport.v1");
}

impl std::fmt::Debug for v1::Certificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Certificate")
            .field("name", &self.name)
            .field("cert", &self.cert)
            .field("key", &convert::REDACTED)
            .finish()
    }
}

/// The encoded `FileDescriptorSet` of `anyport.v1`, for server reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/anyport.v1.bin"));

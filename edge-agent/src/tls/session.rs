//! One trait for what the TLS library has two types for: a session that has no
//! buffers of its own, of a server or of a client.

use rustls::{
    CommonState,
    client::{ClientConnectionData, UnbufferedClientConnection},
    server::{ServerConnectionData, UnbufferedServerConnection},
    unbuffered::UnbufferedStatus,
};

pub trait Session: Unpin {
    type Data;

    /// Takes in records as they came, and says what has to be done next.
    fn process<'c, 'i>(&'c mut self, records: &'i mut [u8])
    -> UnbufferedStatus<'c, 'i, Self::Data>;

    fn common(&self) -> &CommonState;
}

macro_rules! session {
    ($connection:ty, $data:ty) => {
        impl Session for $connection {
            type Data = $data;

            fn process<'c, 'i>(
                &'c mut self,
                records: &'i mut [u8],
            ) -> UnbufferedStatus<'c, 'i, Self::Data> {
                self.process_tls_records(records)
            }

            fn common(&self) -> &CommonState {
                self
            }
        }
    };
}

session!(UnbufferedServerConnection, ServerConnectionData);
session!(UnbufferedClientConnection, ClientConnectionData);

//! TLS for tests: an authority that issues certificates, and clients and origins on blocking
//! sockets. What goes wrong in making them is a panic: a test that needs them has failed.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection};

use crate::cluster::Cluster;

/// An authority and what it has issued.
pub struct Authority {
    /// Its own certificate.
    pub pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its key, in PEM.
#[derive(Clone)]
pub struct Issued {
    pub chain: String,
    pub key: String,
}

impl Authority {
    /// A new one, of this name.
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        let issuer = Issuer::new(params, key);
        Self { pem, issuer }
    }

    /// A certificate for a name or an address.
    pub fn issue(&self, name: &str) -> Issued {
        self.issue_until(name, 2090)
    }

    /// As [`issue`](Self::issue), but no longer valid.
    pub fn issue_expired(&self, name: &str) -> Issued {
        self.issue_until(name, 2020)
    }

    fn issue_until(&self, name: &str, end: i32) -> Issued {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.not_after = rcgen::date_time_ymd(end, 1, 1);
        params.distinguished_name.push(DnType::CommonName, name);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Issued {
            chain: certificate.pem(),
            key: key.serialize_pem(),
        }
    }

    fn trusted(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        let der = CertificateDer::from_pem_slice(self.pem.as_bytes()).unwrap();
        roots.add(der).unwrap();
        roots
    }

    /// A client that trusts nobody else.
    pub fn client(&self) -> ClientConfig {
        ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(self.trusted())
            .with_no_client_auth()
    }
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

impl Issued {
    /// The configuration of a server that shows it.
    pub fn server(&self) -> ServerConfig {
        let chain = CertificateDer::pem_slice_iter(self.chain.as_bytes());
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes()).unwrap();
        ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain.collect::<Result<_, _>>().unwrap(), key)
            .unwrap()
    }

    /// The entry of a manifest, whose files are in the cluster's directory.
    pub fn declared(&self, cluster: &Cluster, name: &str) -> String {
        let write = |kind: &str, text: &str| {
            let path = cluster.directory().join(format!("{name}.{kind}"));
            fs::write(path, text).unwrap();
        };
        write("pem", &self.chain);
        write("key", &self.key);
        format!("  - {{ name: {name}, cert_file: {name}.pem, key_file: {name}.key }}\n")
    }
}

/// A socket, or one with TLS on it.
pub trait Talker: Read + Write + Send {
    /// Ends what this side says, and goes on listening.
    fn end(&mut self);
}

impl Talker for TcpStream {
    fn end(&mut self) {
        // Who is gone hears no end.
        let _ = self.shutdown(Shutdown::Write);
    }
}

/// rustls on a blocking socket.
pub struct Tls {
    pub session: rustls::Connection,
    pub socket: TcpStream,
}

impl Read for Tls {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.session.reader().read(buffer) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                read => return read,
            }
            self.session.read_tls(&mut self.socket)?;
            let processed = self.session.process_new_packets();
            // An alert, where there is one to send.
            self.flush()?;
            processed.map_err(|error| io::Error::new(ErrorKind::InvalidData, error))?;
        }
    }
}

impl Write for Tls {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.session.writer().write(bytes)?;
        self.flush()?;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        while self.session.wants_write() {
            self.session.write_tls(&mut self.socket)?;
        }
        Ok(())
    }
}

impl Talker for Tls {
    fn end(&mut self) {
        self.session.send_close_notify();
        let _ = self.flush();
        self.socket.end();
    }
}

impl Tls {
    /// Shakes hands.
    pub fn shake(&mut self) -> io::Result<()> {
        let done = self.session.complete_io(&mut self.socket);
        done.map(|_| ())
    }

    /// The protocol that was agreed on (ALPN).
    pub fn protocol(&self) -> Option<String> {
        let protocol = self.session.alpn_protocol();
        protocol.map(|protocol| String::from_utf8(protocol.to_vec()).unwrap())
    }

    /// What the other side shows.
    pub fn certificate(&self) -> CertificateDer<'static> {
        self.session.peer_certificates().unwrap()[0]
            .clone()
            .into_owned()
    }
}

/// Serves connections of an origin's port, a thread each, to the end of the test.
pub fn serve<F>(cluster: &Cluster, origin: usize, port: u16, tls: Option<ServerConfig>, talk: F)
where
    F: Fn(&mut dyn Talker) + Send + Sync + 'static,
{
    let namespace = &cluster.topology().origins()[origin].namespace;
    let listener = namespace
        .run(|| TcpListener::bind(("0.0.0.0", port)))
        .unwrap()
        .unwrap();
    let (tls, talk) = (tls.map(Arc::new), Arc::new(talk));
    thread::spawn(move || {
        for socket in listener.incoming().map_while(Result::ok) {
            let (tls, talk) = (tls.clone(), Arc::clone(&talk));
            thread::spawn(move || match tls {
                None => {
                    let mut socket = socket;
                    talk(&mut socket);
                }
                Some(config) => {
                    let session = ServerConnection::new(config).unwrap().into();
                    let mut tls = Tls { session, socket };
                    // A client that refuses the certificate is what some tests want.
                    if tls.shake().is_ok() {
                        talk(&mut tls);
                    }
                }
            });
        }
    });
}

/// Answers each piece as it is, and the end with an end.
pub fn echo(talker: &mut dyn Talker) {
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = talker.read(&mut buffer) {
        if talker.write_all(&buffer[..count]).is_err() {
            return;
        }
    }
    talker.end();
}

/// Connects and shakes hands as a client of `name`.
pub fn shaken(cluster: &Cluster, to: &str, config: ClientConfig, name: &str) -> io::Result<Tls> {
    let socket = cluster
        .dial(to.parse().unwrap())
        .map_err(io::Error::other)?;
    socket.set_nodelay(true)?;
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let session = ClientConnection::new(Arc::new(config), name)
        .unwrap()
        .into();
    let mut tls = Tls { session, socket };
    tls.shake()?;
    Ok(tls)
}

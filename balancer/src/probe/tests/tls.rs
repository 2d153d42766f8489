//! `tls`, against a server of the same library.

use rustls::{
    ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer},
};
use tokio_rustls::TlsAcceptor;

use super::{web::head, *};

/// Shows a certificate that nobody vouches for.
pub(super) struct Server(TlsAcceptor);

impl Server {
    pub(super) fn new(protocols: &[&str]) -> Self {
        Self::of_versions(protocols, rustls::ALL_VERSIONS)
    }

    fn of_versions(
        protocols: &[&str],
        versions: &[&'static rustls::SupportedProtocolVersion],
    ) -> Self {
        let made = rcgen::generate_simple_self_signed(["elsewhere.example".to_owned()]).unwrap();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let chain = vec![CertificateDer::from(made.cert.der().to_vec())];
        let provider = Arc::new(aws_lc_rs::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        config.alpn_protocols = protocols
            .iter()
            .map(|name| name.as_bytes().to_vec())
            .collect();
        Self(TlsAcceptor::from(Arc::new(config)))
    }

    /// To a request.
    pub(super) async fn answer(self, answer: String) -> SocketAddr {
        let (acceptor, answer) = (self.0, Arc::new(answer));
        let (address, _) = origin(move |_, stream: TcpStream| {
            let (acceptor, answer) = (acceptor.clone(), Arc::clone(&answer));
            async move {
                let Ok(mut stream) = acceptor.accept(stream).await else {
                    return;
                };
                head(&mut stream).await;
                let _ = stream.write_all(answer.as_bytes()).await;
                let _ = stream.shutdown().await;
            }
        })
        .await;
        address
    }

    /// "+PONG" to "PING"; what the client's end looked like comes back.
    async fn pong(
        self,
    ) -> (
        SocketAddr,
        tokio::sync::mpsc::UnboundedReceiver<std::io::Result<usize>>,
    ) {
        let acceptor = self.0;
        let (tell, ends) = tokio::sync::mpsc::unbounded_channel();
        let (address, _) = origin(move |_, stream: TcpStream| {
            let (acceptor, tell) = (acceptor.clone(), tell.clone());
            async move {
                let Ok(mut stream) = acceptor.accept(stream).await else {
                    return;
                };
                let mut heard = [0; 4];
                if stream.read_exact(&mut heard).await.is_ok() && &heard == b"PING" {
                    let _ = stream.write_all(b"+PONG").await;
                }
                let end = stream.read_to_end(&mut Vec::new()).await;
                let reset = stream.get_ref().0.take_error().unwrap();
                let _ = tell.send(reset.map_or(end, Err));
            }
        })
        .await;
        (address, ends)
    }
}

fn tls(address: SocketAddr, timeout: Duration, send: &str, expect: &str) -> Target {
    asking(address, timeout, Check::Tls(exchange(send, expect)))
}

#[tokio::test]
async fn a_handshake_passes_whatever_certificate_is_shown() {
    for version in rustls::ALL_VERSIONS {
        let (address, mut ends) = Server::of_versions(&[], &[version]).pong().await;
        probe(&tls(address, AMPLE, "", "")).await.unwrap();
        let end = ends.recv().await.unwrap();
        assert_eq!(end.expect("no reset"), 0, "{version:?}");
    }
}

#[tokio::test]
async fn the_exchange_is_inside_and_ends_as_tls_ends() {
    let (address, mut ends) = Server::new(&[]).pong().await;
    probe(&tls(address, AMPLE, "PING", "+PONG")).await.unwrap();
    let end = ends.recv().await.unwrap();
    assert_eq!(end.expect("the client says goodbye"), 0);
}

#[tokio::test]
async fn the_wrong_reply_fails_as_in_clear_text() {
    let (address, _ends) = Server::new(&[]).pong().await;
    let failure = failure(&tls(address, LONG, "PING", "-ERR")).await;
    assert_eq!(
        failure.to_string(),
        r#"no reply containing "-ERR" within 3s; heard "+PONG""#
    );
}

#[tokio::test]
async fn an_end_without_goodbye_is_an_end() {
    let acceptor = Server::new(&[]).0;
    let (address, _) = origin(move |_, stream: TcpStream| {
        let acceptor = acceptor.clone();
        async move {
            if let Ok(mut stream) = acceptor.accept(stream).await {
                let _ = stream.write_all(b"-LOADING").await;
                let _ = stream.flush().await;
            }
        }
    })
    .await;
    let failure = failure(&tls(address, AMPLE, "", "+PONG")).await;
    assert_eq!(
        failure.to_string(),
        r#"closed after 8 bytes, no reply containing "+PONG"; heard "-LOADING""#
    );
}

#[tokio::test]
async fn an_alert_is_named() {
    // None of its protocols is what https speaks.
    let (address, _ends) = Server::new(&["h2"]).pong().await;
    let request = Check::Https(web::get("/", "2xx", ""));
    let failure = failure(&asking(address, AMPLE, request)).await;
    assert_eq!(
        failure.to_string(),
        "tls handshake: the server sent the alert NoApplicationProtocol"
    );
    assert_eq!(
        (failure.cause(), failure.blame()),
        (Cause::Tls, Blame::Origin)
    );
}

#[tokio::test]
async fn a_server_that_closes_or_hangs_in_the_handshake_fails() {
    let (address, _) = origin(async |_, mut stream: TcpStream| {
        let _ = stream.read_u8().await;
    })
    .await;
    let closed = failure(&tls(address, AMPLE, "", "")).await;
    assert!(
        closed.to_string().starts_with("tls handshake: "),
        "{closed}"
    );

    let (address, _) = origin(async |_, mut stream: TcpStream| {
        let _ = stream.read_to_end(&mut Vec::new()).await;
    })
    .await;
    let hangs = failure(&tls(address, LONG, "", "")).await;
    assert_eq!(hangs.to_string(), "tls handshake: not finished within 3s");
}

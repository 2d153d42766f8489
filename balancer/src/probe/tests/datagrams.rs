//! `udp` and `icmp`.

use tokio::net::UdpSocket;

use super::*;

fn udp(address: SocketAddr, timeout: Duration, send: &str, expect: &str) -> Target {
    asking(address, timeout, Check::Udp(exchange(send, expect)))
}

/// Answers each datagram with `answers`.
async fn answering(at: &str, answers: &'static [&'static str]) -> SocketAddr {
    let socket = UdpSocket::bind(at).await.unwrap();
    let address = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut datagram = [0; 64];
        while let Ok((_, from)) = socket.recv_from(&mut datagram).await {
            for answer in answers {
                let _ = socket.send_to(answer.as_bytes(), from).await;
            }
        }
    });
    address
}

/// A port that is open and says nothing.
async fn silent() -> (UdpSocket, SocketAddr) {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    (socket, address)
}

#[tokio::test]
async fn the_right_datagram_passes_also_after_others() {
    for at in ["127.0.0.1:0", "[::1]:0"] {
        let address = answering(at, &["busy", "+PONG 7"]).await;
        probe(&udp(address, AMPLE, "PING", "PONG")).await.unwrap();
    }
}

#[tokio::test]
async fn any_answer_passes_at_once_where_none_is_expected() {
    let address = answering("127.0.0.1:0", &["what?"]).await;
    let took = probe(&udp(address, AMPLE, "", "")).await.unwrap();
    assert!(took < AMPLE);
}

#[tokio::test]
async fn silence_passes_where_nothing_is_expected() {
    let (socket, address) = silent().await;
    let took = probe(&udp(address, SHORT, "hello", "")).await.unwrap();
    assert!(took >= SHORT, "{took:?}");
    let mut heard = [0; 9];
    assert_eq!(socket.recv(&mut heard).await.unwrap(), 5);
}

#[tokio::test]
async fn a_closed_port_fails_at_once_whatever_is_expected() {
    for expect in ["", "PONG"] {
        let (socket, address) = silent().await;
        drop(socket);
        let failure = failure(&udp(address, AMPLE, "PING", expect)).await;
        assert_eq!(failure.to_string(), "udp: the port is unreachable");
        assert_eq!(failure.cause(), Cause::Refused);
    }
}

#[tokio::test]
async fn silence_and_the_wrong_datagram_fail_where_one_is_expected() {
    let (_socket, address) = silent().await;
    let failed = failure(&udp(address, SHORT, "PING", "PONG")).await;
    assert_eq!(
        failed.to_string(),
        r#"no reply containing "PONG" within 500ms"#
    );
    assert!(failed.is_timeout());
    let address = answering("127.0.0.1:0", &["PO", "NG"]).await;
    let failed = failure(&udp(address, LONG, "PING", "PONG")).await;
    assert_eq!(
        failed.to_string(),
        r#"no reply containing "PONG" within 3s; heard "NG""#
    );
}

#[tokio::test]
async fn a_timeout_is_retried_with_another_datagram() {
    let (socket, address) = silent().await;
    // Of the first datagram, it says nothing.
    tokio::spawn(async move {
        let mut heard = [0; 9];
        socket.recv_from(&mut heard).await.unwrap();
        while let Ok((_, from)) = socket.recv_from(&mut heard).await {
            let _ = socket.send_to(b"PONG", from).await;
        }
    });
    let target = udp(address, LONG, "PING", "PONG");
    probe(&with_retries(target, 1)).await.unwrap();
}

/// Needs CAP_NET_RAW, or the group in `net.ipv4.ping_group_range`.
#[tokio::test]
async fn a_host_that_answers_an_echo_passes() {
    for ip in ["127.0.0.1:9", "[::1]:9", "[::ffff:127.0.0.1]:9"] {
        let target = asking(ip.parse().unwrap(), AMPLE, Check::Icmp);
        probe(&target).await.unwrap();
    }
}

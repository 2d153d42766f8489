//! `http` and `https`, against servers that say what they are told to.

use anyport_model::check::Request;

use super::{tls::Server, *};

/// Answers each connection's first request with `answer`, and keeps what it heard.
async fn web(answer: String) -> (SocketAddr, tokio::sync::watch::Receiver<String>) {
    let (heard, requests) = tokio::sync::watch::channel(String::new());
    let answer = Arc::new(answer);
    let (address, _) = origin(move |_, mut stream: TcpStream| {
        let (heard, answer) = (heard.clone(), Arc::clone(&answer));
        async move {
            let request = head(&mut stream).await;
            heard.send_replace(request);
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    })
    .await;
    (address, requests)
}

/// Of a request, up to the empty line.
pub(super) async fn head(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => break,
        }
    }
    String::from_utf8(head).unwrap()
}

fn answer(status: &str, body: &str) -> String {
    let len = body.len();
    format!("HTTP/1.1 {status}\r\ncontent-length: {len}\r\n\r\n{body}")
}

pub(super) fn get(path: &str, codes: &str, body: &str) -> Request {
    Request {
        path: path.parse().unwrap(),
        expected_codes: codes.parse().unwrap(),
        expected_body: body.to_owned(),
    }
}

fn http(address: SocketAddr, request: Request) -> Target {
    asking(address, AMPLE, Check::Http(request))
}

async fn said(answer: String, request: Request) -> String {
    let (address, _heard) = web(answer).await;
    failure(&http(address, request)).await.to_string()
}

#[tokio::test]
async fn the_path_is_asked_for_and_the_right_answer_passes() {
    let (address, heard) = web(answer("200 OK", "all is WELL")).await;
    let target = http(address, get("/healthz?full=1", "2xx", "is well"));
    probe(&target).await.unwrap();
    let request = heard.borrow().clone();
    assert!(
        request.starts_with("GET /healthz?full=1 HTTP/1.1\r\n"),
        "{request}"
    );
    assert!(
        request.contains(&format!("host: {address}\r\n")),
        "{request}"
    );
}

#[tokio::test]
async fn a_status_that_is_not_expected_fails_and_is_named() {
    let request = || get("/", "2xx", "");
    for status in [503, 302, 404] {
        let text = said(answer(&format!("{status} X"), ""), request()).await;
        assert_eq!(text, format!("status {status}, which is not in 2xx"));
    }
    let (address, _heard) = web(answer("302 Found", "")).await;
    probe(&http(address, get("/", "200,300-399", "")))
        .await
        .unwrap();
}

#[tokio::test]
async fn an_interim_answer_is_none() {
    let answer = format!(
        "HTTP/1.1 103 Early Hints\r\n\r\n{}",
        answer("204 No Content", "")
    );
    let (address, _heard) = web(answer).await;
    probe(&http(address, get("/", "204", ""))).await.unwrap();
}

#[tokio::test]
async fn a_body_without_the_text_fails_and_is_shown() {
    let request = || get("/", "2xx", "ok");
    let text = said(answer("200 OK", "database\nis gone"), request()).await;
    assert_eq!(
        text,
        r#"the body lacks "ok"; it begins "database\nis gone""#
    );
    let text = said(answer("200 OK", ""), request()).await;
    assert_eq!(text, r#"the body is empty and lacks "ok""#);
}

#[tokio::test]
async fn of_a_body_without_end_the_first_64_kib_are_read() {
    let (address, _) = origin(async |_, mut stream: TcpStream| {
        head(&mut stream).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await;
        let block = [b'x'; 4096];
        while stream.write_all(&block).await.is_ok() {}
    })
    .await;
    let failure = failure(&http(address, get("/", "2xx", "ok"))).await;
    assert_eq!(
        failure.to_string(),
        format!(
            r#"the first 64 KiB of the body lack "ok"; it begins "{}"…"#,
            "x".repeat(40)
        )
    );
}

#[tokio::test]
async fn a_body_in_pieces_is_searched_across_them() {
    let (address, _) = origin(async |_, mut stream: TcpStream| {
        head(&mut stream).await;
        stream.set_nodelay(true).unwrap();
        let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
        for piece in [head, "3\r\nrea\r\n", "1\r\nd\r\n", "1\r\nY\r\n"] {
            let _ = stream.write_all(piece.as_bytes()).await;
        }
        let _ = stream.read_to_end(&mut Vec::new()).await;
    })
    .await;
    probe(&http(address, get("/", "2xx", "ready")))
        .await
        .unwrap();
}

#[tokio::test]
async fn what_is_no_http_is_said_to_be_none() {
    let text = said("SSH-2.0-OpenSSH_9.2\r\n".to_owned(), get("/", "2xx", "")).await;
    assert!(text.starts_with("http: the answer is none: "), "{text}");
    let text = said(String::new(), get("/", "2xx", "")).await;
    assert_eq!(text, "http: closed before the answer was whole");
    let short = "HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\nshort".to_owned();
    let text = said(short, get("/", "2xx", "ok")).await;
    assert_eq!(text, "http: closed before the answer was whole");
}

#[tokio::test]
async fn a_head_without_end_is_refused() {
    let (address, _) = origin(async |_, mut stream: TcpStream| {
        head(&mut stream).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nx: ").await;
        let block = [b'x'; 4096];
        while stream.write_all(&block).await.is_ok() {}
    })
    .await;
    let failure = failure(&http(address, get("/", "2xx", ""))).await;
    assert_eq!(failure.cause(), Cause::Reply, "{failure}");
}

#[tokio::test]
async fn a_server_that_does_not_answer_times_out_and_one_that_stops_midway_too() {
    let (address, _) = origin(async |_, mut stream: TcpStream| {
        let _ = stream.read_to_end(&mut Vec::new()).await;
    })
    .await;
    let target = asking(address, SHORT, Check::Http(get("/", "2xx", "")));
    let failure = failure(&target).await;
    assert_eq!(failure.to_string(), "no answer to the request within 500ms");
    assert_eq!(failure.cause(), Cause::Timeout);

    let (address, _) = origin(async |_, mut stream: TcpStream| {
        head(&mut stream).await;
        let begun = "HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\nload";
        let _ = stream.write_all(begun.as_bytes()).await;
        let _ = stream.read_to_end(&mut Vec::new()).await;
    })
    .await;
    let target = asking(address, LONG, Check::Http(get("/", "2xx", "ok")));
    let failure = super::failure(&target).await;
    assert_eq!(
        failure.to_string(),
        r#"the body was not whole within 3s, nor contained "ok"; heard "load""#
    );
}

#[tokio::test]
async fn https_asks_inside_of_tls() {
    let server = Server::new(&["http/1.1"]);
    let address = server.answer(answer("200 OK", "ready")).await;
    let target = |body| asking(address, AMPLE, Check::Https(get("/", "2xx", body)));
    probe(&target("ready")).await.unwrap();
    let failure = failure(&target("steady")).await;
    assert_eq!(
        failure.to_string(),
        r#"the body lacks "steady"; it begins "ready""#
    );
}

#[tokio::test]
async fn https_where_there_is_no_tls_is_said_so() {
    let (address, _) = origin(async |_, mut stream: TcpStream| {
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        let _ = stream.read_to_end(&mut Vec::new()).await;
    })
    .await;
    let target = asking(address, AMPLE, Check::Https(get("/", "2xx", "")));
    let failure = failure(&target).await;
    assert_eq!(
        failure.to_string(),
        "tls handshake: what the server sent is no TLS"
    );
    assert_eq!(failure.cause(), Cause::Tls);
}

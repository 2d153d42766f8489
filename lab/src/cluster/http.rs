//! As much of HTTP as it takes to read an admin page.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyport_netns::Namespace;

/// For each step of the way.
const TIMEOUT: Duration = Duration::from_secs(30);

/// A page.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: String,
}

/// Asks from inside `namespace`.
pub(crate) fn get(namespace: &Namespace, address: SocketAddr, path: &str) -> io::Result<Answer> {
    let text = namespace
        .run(|| ask(address, path))
        .map_err(io::Error::other)??;
    read(&text).ok_or_else(|| {
        let said = format!("no HTTP answer: {text:?}");
        io::Error::new(io::ErrorKind::InvalidData, said)
    })
}

fn ask(address: SocketAddr, path: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    // The older protocol has no chunks, and ends where the connection does.
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

fn read(text: &str) -> Option<Answer> {
    let (head, body) = text.split_once("\r\n\r\n")?;
    let (protocol, rest) = head.split_once(' ')?;
    let status = rest.get(..3)?.parse().ok()?;
    protocol.starts_with("HTTP/1.").then(|| Answer {
        status,
        body: body.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_and_body_are_taken_apart() {
        let answer = read("HTTP/1.0 503 Service Unavailable\r\nA: b\r\n\r\nnot\r\n\r\nready\n");
        let answer = answer.map(|answer| (answer.status, answer.body));
        assert_eq!(answer, Some((503, "not\r\n\r\nready\n".to_owned())));
    }

    #[test]
    fn what_is_no_answer_is_none() {
        for text in [
            "",
            "HTTP/1.1 200 OK\r\n",
            "SSH-2.0 200\r\n\r\n",
            "HTTP/1.1 2\r\n\r\n",
        ] {
            assert!(read(text).is_none(), "{text:?}");
        }
    }
}

//! Just enough HTTP/1.1 to be probed, and to be asked with any HTTP client.

use std::io;

use tokio::net::TcpStream;

use super::conversation::{Scratch, read_into, who_is, write_all};
use crate::load::who::Tag;

/// The longest request head that is read, in bytes.
const LONGEST_HEAD: usize = 8 * 1024;

const END_OF_HEAD: &[u8] = b"\r\n\r\n";

/// What a connection has sent so far comes to.
#[derive(Debug, PartialEq, Eq)]
enum Request {
    /// More has to come.
    Incomplete,
    /// Nothing that is answered here.
    Refused { status: &'static str },
    /// A GET or HEAD without a body.
    Complete {
        /// Its length; the next one follows.
        length: usize,
        is_head: bool,
        keep_alive: bool,
    },
}

pub(super) async fn serve(
    stream: &TcpStream,
    tag: Option<&Tag>,
    scratch: &Scratch,
) -> io::Result<()> {
    let mut waiting = Vec::new();
    loop {
        let keep_alive = match read_request(&waiting) {
            Request::Incomplete => {
                let more = read_into(stream, scratch, |data| {
                    waiting.extend_from_slice(data);
                    !data.is_empty()
                });
                if more.await? {
                    continue;
                }
                return Ok(());
            }
            Request::Refused { status } => {
                write_all(stream, response(status, "", false, false).as_bytes()).await?;
                return Ok(());
            }
            Request::Complete {
                length,
                is_head,
                keep_alive,
            } => {
                waiting.drain(..length);
                let body = match tag {
                    Some(tag) => format!("{}\n", who_is(stream, tag)?),
                    None => "ok\n".to_owned(),
                };
                let answer = response("200 OK", &body, is_head, keep_alive);
                write_all(stream, answer.as_bytes()).await?;
                keep_alive
            }
        };
        if !keep_alive {
            return Ok(());
        }
    }
}

fn read_request(sent: &[u8]) -> Request {
    let end = sent
        .windows(END_OF_HEAD.len())
        .position(|window| window == END_OF_HEAD);
    let Some(end) = end.filter(|end| *end <= LONGEST_HEAD) else {
        return match sent.len() {
            0..=LONGEST_HEAD => Request::Incomplete,
            _ => Request::Refused {
                status: "431 Request Header Fields Too Large",
            },
        };
    };
    let bad = Request::Refused {
        status: "400 Bad Request",
    };
    let Ok(head) = str::from_utf8(&sent[..end]) else {
        return bad;
    };
    let mut lines = head.split("\r\n");
    let first: Vec<_> = lines.next().unwrap_or_default().split(' ').collect();
    let [method, _, version @ ("HTTP/1.0" | "HTTP/1.1")] = first[..] else {
        return bad;
    };
    let fields = lines.filter_map(|line| line.split_once(':'));
    let has = |name: &str, matches: fn(&str) -> bool| {
        let mut fields = fields.clone();
        fields.any(|(field, value)| field.eq_ignore_ascii_case(name) && matches(value.trim()))
    };
    let has_body =
        has("content-length", |length| length != "0") || has("transfer-encoding", |_| true);
    match method {
        "GET" | "HEAD" if !has_body => Request::Complete {
            length: end + END_OF_HEAD.len(),
            is_head: method == "HEAD",
            keep_alive: version == "HTTP/1.1"
                && !has("connection", |option| option.eq_ignore_ascii_case("close")),
        },
        // Its body would have to be told from the next request.
        _ => Request::Refused {
            status: "405 Method Not Allowed",
        },
    }
}

fn response(status: &str, body: &str, is_head: bool, keep_alive: bool) -> String {
    let connection = if keep_alive { "keep-alive" } else { "close" };
    let length = body.len();
    let sent = if is_head { "" } else { body };
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\n\
         Connection: {connection}\r\n\r\n{sent}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_taken_one_after_the_other() {
        let sent = b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\nHEAD / HTTP/1.0\r\n\r\n";
        let first = read_request(sent);
        let expected = Request::Complete {
            length: 34,
            is_head: false,
            keep_alive: true,
        };
        assert_eq!(first, expected);
        let expected = Request::Complete {
            length: 19,
            is_head: true,
            keep_alive: false,
        };
        assert_eq!(read_request(&sent[34..]), expected);
        for cut in 0..34 {
            assert_eq!(read_request(&sent[..cut]), Request::Incomplete);
        }
        let close = b"GET / HTTP/1.1\r\nCONNECTION: Close\r\n\r\n";
        assert!(matches!(
            read_request(close),
            Request::Complete {
                keep_alive: false,
                ..
            }
        ));
    }

    #[test]
    fn what_is_not_a_plain_request_is_refused() {
        for sent in [
            "\r\n\r\n",
            "GET /\r\n\r\n",
            "GET / HTTP/2.0\r\n\r\n",
            "GET / x HTTP/1.1\r\n\r\n",
            "POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc",
            "GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
        ] {
            let request = read_request(sent.as_bytes());
            assert!(matches!(request, Request::Refused { .. }), "{sent:?}");
        }
        let long = [b'x'; LONGEST_HEAD + 1];
        assert!(matches!(read_request(&long), Request::Refused { .. }));
    }
}

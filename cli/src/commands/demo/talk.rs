//! The few words that client and origin exchange.
//!
//! The client says a line; the origin repeats it after its own name and the
//! address that it sees at the other end. So every answer proves that the very
//! bytes went there and back, and says which server they met.

use std::{io, net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    time::timeout,
};

/// Bytes of the longest line: a name of 63, an IPv6 address with its port, and a
/// number, with spaces between.
const LONGEST_LINE: u64 = 160;
/// Of a whole exchange. Inside one machine a millisecond is much; this bounds a
/// machine that is short of processors.
const PATIENCE: Duration = Duration::from_secs(5);

/// An origin's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Which origin it is.
    pub origin: String,
    /// Whom it is connected to, as it sees it.
    pub peer: SocketAddr,
}

/// An open connection to some address behind the edge.
pub struct Conversation {
    stream: BufReader<TcpStream>,
    /// The client's own end.
    pub local: SocketAddr,
    /// What was dialled.
    pub target: SocketAddr,
}

/// Why there was no conversation.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    #[error("connect: {0}")]
    Connect(#[source] io::Error),
    #[error("connected, and then: {0}")]
    Broken(#[source] io::Error),
    #[error("connected, and then closed without an answer")]
    Closed,
    #[error("no answer within {} s", PATIENCE.as_secs())]
    Silent,
    #[error("said {said:?} and was answered {answer:?}")]
    Garbled { said: String, answer: String },
}

impl Conversation {
    /// Dials.
    pub async fn open(target: SocketAddr) -> Result<Self, Problem> {
        let stream = timeout(PATIENCE, TcpStream::connect(target)).await;
        let stream = stream
            .map_err(|_| Problem::Silent)?
            .map_err(Problem::Connect)?;
        let local = stream.local_addr().map_err(Problem::Broken)?;
        Ok(Self {
            stream: BufReader::new(stream),
            local,
            target,
        })
    }

    /// Says `number` and checks the answer.
    pub async fn ask(&mut self, number: u64) -> Result<Answer, Problem> {
        let asked = timeout(PATIENCE, self.exchange(number)).await;
        asked.unwrap_or(Err(Problem::Silent))
    }

    async fn exchange(&mut self, number: u64) -> Result<Answer, Problem> {
        let said = format!("{number:016x}");
        let question = format!("{said}\n");
        let sent = self.stream.get_mut().write_all(question.as_bytes()).await;
        sent.map_err(Problem::Broken)?;
        let mut line = String::new();
        let mut limited = (&mut self.stream).take(LONGEST_LINE);
        let read = limited.read_line(&mut line).await;
        match read.map_err(Problem::Broken)? {
            0 => Err(Problem::Closed),
            _ => match understand(&line, &said) {
                Some(answer) => Ok(answer),
                None => Err(Problem::Garbled { said, answer: line }),
            },
        }
    }
}

fn understand(line: &str, said: &str) -> Option<Answer> {
    let mut words = line.strip_suffix('\n')?.split(' ');
    let answer = Answer {
        origin: words.next()?.to_owned(),
        peer: words.next()?.parse().ok()?,
    };
    (words.next() == Some(said) && words.next().is_none()).then_some(answer)
}

/// The origin's side of a connection, to its end.
pub async fn answer(name: &str, stream: TcpStream) -> io::Result<()> {
    let peer = stream.peer_addr()?;
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    loop {
        line.clear();
        let mut limited = (&mut stream).take(LONGEST_LINE);
        if limited.read_line(&mut line).await? == 0 {
            return Ok(());
        }
        let reply = format!("{name} {peer} {line}");
        stream.get_mut().write_all(reply.as_bytes()).await?;
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn an_answer_names_the_origin_and_repeats_what_was_said() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let target = listener.local_addr().expect("bound");
        let origin = tokio::spawn(async move {
            let (stream, _) = listener.accept().await.expect("a client");
            answer("b", stream).await
        });
        let mut talk = Conversation::open(target).await.expect("a listener");
        for number in [7, u64::MAX] {
            let answer = talk.ask(number).await.expect("an answer");
            assert_eq!(answer.origin, "b");
            assert_eq!(answer.peer, talk.local);
        }
        drop(talk);
        origin.await.expect("no panic").expect("a clean end");
    }

    #[test]
    fn what_another_said_is_no_answer() {
        let line = "a 10.0.2.1:4242 0000000000000007\n";
        assert!(understand(line, "0000000000000007").is_some());
        assert_eq!(understand(line, "0000000000000008"), None);
        assert_eq!(understand(line.trim_end(), "0000000000000007"), None);
        assert_eq!(
            understand("a b 0000000000000007\n", "0000000000000007"),
            None
        );
        assert_eq!(understand("\n", ""), None);
    }
}

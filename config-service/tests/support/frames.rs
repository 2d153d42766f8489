//! HTTP/2 frames by hand (RFC 9113), for clients that do what no library does.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
};

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const GOAWAY: u8 = 7;
pub const CONTINUATION: u8 = 9;
const SETTINGS: u8 = 4;
const INITIAL_WINDOW_SIZE: u16 = 4;

pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;

/// A connection that has said the preface.
pub struct Frames {
    stream: TcpStream,
}

/// What the server said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Said {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    /// Of RST_STREAM and GOAWAY.
    pub code: u32,
}

impl Frames {
    /// `window`: how much of each answer the server may send unasked.
    pub fn connect(address: SocketAddr, window: u32) -> Self {
        let mut stream = TcpStream::connect(address).unwrap();
        // Whatever is not said or taken by then never is.
        let limit = Some(super::PATIENCE);
        stream.set_read_timeout(limit).unwrap();
        stream.set_write_timeout(limit).unwrap();
        stream
            .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
            .unwrap();
        let mut frames = Self { stream };
        let setting = [
            &INITIAL_WINDOW_SIZE.to_be_bytes()[..],
            &window.to_be_bytes()[..],
        ];
        frames.send(SETTINGS, 0, 0, &setting.concat()).unwrap();
        frames
    }

    pub fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> io::Result<()> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let mut frame = length[1..].to_vec();
        frame.extend([kind, flags]);
        frame.extend(stream.to_be_bytes());
        frame.extend(payload);
        self.stream.write_all(&frame)
    }

    /// Begins a call of a method of the config service.
    pub fn open(&mut self, method: &str, stream: u32, flags: u8) -> io::Result<()> {
        self.send(HEADERS, END_HEADERS | flags, stream, &call(method))
    }

    /// The next frame; `None` where the server closed the connection.
    pub fn next(&mut self) -> Option<Said> {
        let mut head = [0; 9];
        self.read(&mut head)?;
        let [a, b, c, kind, flags, s0, s1, s2, s3] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
        self.read(&mut payload)?;
        let code = match kind {
            RST_STREAM => &payload[..4],
            GOAWAY => &payload[4..8],
            _ => &[0; 4],
        };
        Some(Said {
            kind,
            flags,
            stream: u32::from_be_bytes([s0, s1, s2, s3]),
            code: u32::from_be_bytes(code.try_into().unwrap()),
        })
    }

    fn read(&mut self, bytes: &mut [u8]) -> Option<()> {
        match self.stream.read_exact(bytes) {
            Ok(()) => Some(()),
            Err(error) if timed_out(&error) => panic!("the server says nothing more"),
            Err(_) => None,
        }
    }

    /// A second one for the other direction.
    pub fn and_back(&self) -> Self {
        Self {
            stream: self.stream.try_clone().unwrap(),
        }
    }
}

pub fn timed_out(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
    )
}

/// The header block of a call, by HPACK without a table of its own (RFC 7541).
fn call(method: &str) -> Vec<u8> {
    let path = format!("/anyport.v1.ConfigService/{method}");
    // :method POST and :scheme http are whole in the static table.
    let mut block = vec![0x83, 0x86];
    // Names of the static table (:path, :authority, content-type), values as they are.
    for (name, value) in [
        (&[0x04][..], &path[..]),
        (&[0x01], "anyport"),
        (&[0x0f, 0x10], "application/grpc"),
    ] {
        block.extend(name);
        string(&mut block, value);
    }
    block.push(0);
    string(&mut block, "te");
    string(&mut block, "trailers");
    block
}

fn string(block: &mut Vec<u8>, text: &str) {
    block.push(u8::try_from(text.len()).unwrap());
    block.extend(text.as_bytes());
}

/// A gRPC message, or the start of one that says it is `length` bytes long.
pub fn message(length: u32, bytes: &[u8]) -> Vec<u8> {
    let mut message = vec![0];
    message.extend(length.to_be_bytes());
    message.extend(bytes);
    message
}

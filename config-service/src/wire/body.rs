//! Requests and answers as HTTP/2 has them.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use http_body::{Body as HttpBody, Frame};
use prost::{Message, bytes::Bytes};
use tokio::sync::mpsc;
use tonic::{
    Status, Streaming,
    body::Body,
    codec::BufferSettings,
    codegen::http::{HeaderMap, Request, Response, header::CONTENT_TYPE},
    metadata::GRPC_CONTENT_TYPE,
};
use tonic_prost::ProstDecoder;

use super::Coding;

/// What a message from a client is read into at first: most have a hundred bytes.
const USUAL: usize = 512;

/// The messages of a call, none longer than `longest`.
///
/// # Errors
/// Where they are compressed.
pub(crate) fn call_of<T: Message + Default + 'static>(
    request: Request<Body>,
    longest: usize,
) -> Result<Streaming<T>, Status> {
    if let Some(encoding) = request.headers().get("grpc-encoding")
        && encoding != "identity"
    {
        let said = format!("grpc-encoding: {encoding:?} is not taken; right is identity");
        return Err(Status::unimplemented(said));
    }
    // The second is for those who encode.
    let decoder = ProstDecoder::new(BufferSettings::new(USUAL, 0));
    let body = request.into_body();
    Ok(Streaming::new_request(decoder, body, None, Some(longest)))
}

/// The answer of these messages, or parts of them, until there are no more or one is an
/// error.
pub(crate) fn respond(
    messages: mpsc::Receiver<Result<Bytes, Status>>,
    coding: Coding,
) -> Response<Body> {
    let messages = Messages {
        messages,
        ended: false,
    };
    let mut response = Response::new(Body::new(messages));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, GRPC_CONTENT_TYPE);
    if let Some(coding) = coding.header() {
        headers.insert("grpc-encoding", coding);
    }
    response
}

/// The body of an answer: messages as they come, then how it ended.
struct Messages {
    messages: mpsc::Receiver<Result<Bytes, Status>>,
    ended: bool,
}

impl HttpBody for Messages {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let end = match ready!(self.messages.poll_recv(cx)) {
            Some(Ok(bytes)) => return Poll::Ready(Some(Ok(Frame::data(bytes)))),
            Some(Err(status)) => status,
            None => Status::ok(""),
        };
        self.ended = true;
        let mut trailers = HeaderMap::new();
        end.add_header(&mut trailers)?;
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.ended
    }
}

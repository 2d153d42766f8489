//! A call that is not answered by its deadline ends with `DEADLINE_EXCEEDED`, and
//! what was done for it is dropped.
//!
//! tonic ends it too, but with `CANCELLED`, which tells a client that somebody gave
//! up. So it is done here, a little earlier.

use std::time::Duration;

use http::{HeaderMap, Request};
use tonic::{Status, body::Body};

use crate::layer::{Answer, Answers, Around};

/// Before the client's own clock and tonic's, so that the answer is the one that
/// counts; of short ones a tenth.
const AHEAD: Duration = Duration::from_millis(20);

/// Ends calls by what `grpc-timeout` says.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deadline;

impl Around for Deadline {
    fn call(&self, inner: &mut impl Answers, request: Request<Body>) -> Answer {
        let asked = asked(request.headers());
        let answer = inner.call(request);
        let Some(asked) = asked else {
            return Box::pin(answer);
        };
        let limit = asked - AHEAD.min(asked / 10);
        Box::pin(async move {
            let answered = tokio::time::timeout(limit, answer).await;
            answered.unwrap_or_else(|_| Ok(exceeded(asked).into_http()))
        })
    }
}

fn exceeded(asked: Duration) -> Status {
    Status::deadline_exceeded(format!(
        "no answer within {asked:?}, as grpc-timeout asks; whether a write was done is told when \
         it is repeated with the same request_id"
    ))
}

/// At most 8 digits and a unit. What is malformed is no deadline.
fn asked(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = value.split_at_checked(value.len().checked_sub(1)?)?;
    if digits.len() > 8 || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let amount: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(amount * 60 * 60),
        "M" => Duration::from_secs(amount * 60),
        "S" => Duration::from_secs(amount),
        "m" => Duration::from_millis(amount),
        "u" => Duration::from_micros(amount),
        "n" => Duration::from_nanos(amount),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use http::Response;
    use tonic::Code;
    use tower::{Layer, ServiceExt, service_fn};

    use super::*;
    use crate::layer::AroundLayer;

    fn headers(timeout: &str) -> HeaderMap {
        let value = timeout.parse().expect("a header");
        HeaderMap::from_iter([(http::HeaderName::from_static("grpc-timeout"), value)])
    }

    #[test]
    fn timeouts_are_read_in_every_unit() {
        for (text, read) in [
            ("2H", Some(Duration::from_secs(7200))),
            ("3M", Some(Duration::from_secs(180))),
            ("5S", Some(Duration::from_secs(5))),
            ("70m", Some(Duration::from_millis(70))),
            ("9u", Some(Duration::from_micros(9))),
            ("99999999n", Some(Duration::from_nanos(99_999_999))),
            ("99999999H", Some(Duration::from_secs(99_999_999 * 3600))),
            ("123456789S", None),
            ("5", None),
            ("S", None),
            ("-1S", None),
            ("+1S", None),
            ("1X", None),
            ("", None),
        ] {
            assert_eq!(asked(&headers(text)), read, "{text:?}");
        }
        assert_eq!(asked(&HeaderMap::new()), None);
    }

    /// How long the answer took, and its code, where the service never has one.
    async fn hang(timeout: &str) -> (Duration, Code) {
        let work = Arc::new(());
        let held = Arc::clone(&work);
        let service = AroundLayer(Deadline).layer(service_fn(move |_: Request<Body>| {
            let held = Arc::clone(&held);
            async move {
                std::future::pending::<()>().await;
                drop(held);
                Ok(Response::new(Body::empty()))
            }
        }));
        let mut request = Request::new(Body::empty());
        *request.headers_mut() = headers(timeout);
        let begun = tokio::time::Instant::now();
        let answer = service.oneshot(request).await.expect("never fails");
        assert_eq!(Arc::strong_count(&work), 1, "the work was dropped");
        let status = Status::from_header_map(answer.headers()).expect("a status");
        (begun.elapsed(), status.code())
    }

    #[tokio::test]
    async fn what_hangs_ends_before_its_deadline_and_its_work_is_dropped() {
        let (after, code) = hang("500m").await;
        assert_eq!(code, Code::DeadlineExceeded);
        assert!(after >= Duration::from_millis(480), "{after:?}");
        assert_eq!(hang("50m").await.1, Code::DeadlineExceeded);
        assert_eq!(hang("0S").await.1, Code::DeadlineExceeded);
    }

    #[tokio::test]
    async fn what_is_in_time_or_has_no_deadline_is_left_alone() {
        let slow = service_fn(|_: Request<Body>| async {
            tokio::time::sleep(Duration::from_millis(20)).await;
            Ok(Response::new(Body::empty()))
        });
        for timeout in [Some("1H"), None] {
            let mut request = Request::new(Body::empty());
            if let Some(timeout) = timeout {
                *request.headers_mut() = headers(timeout);
            }
            let service = AroundLayer(Deadline).layer(slow);
            let answer = service.oneshot(request).await.expect("never fails");
            assert!(Status::from_header_map(answer.headers()).is_none());
        }
    }
}

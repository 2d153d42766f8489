//! Errors as gRPC says them: the code tells whose fault it is, the message is
//! for people, the details (`google.rpc`) for programs.

use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, PreconditionViolation, StatusExt};

use crate::{
    admit::{Refusal, WriteError},
    store::StoreError,
};

/// When the store may be back.
const STORE_RETRY: Duration = Duration::from_secs(1);
/// When the other write is done.
const CONTENDED_RETRY: Duration = Duration::from_millis(100);
/// When some of the large requests are done.
const FULL_RETRY: Duration = Duration::from_secs(1);
/// When another replica, or this one after its restart, takes over.
const STOPPING_RETRY: Duration = Duration::from_millis(500);

/// Details travel in the trailers, and most clients take 16 KiB of those, in
/// base 64, with the message beside them.
const DETAILS_MAX: usize = 8 << 10;

/// INVALID_ARGUMENT with one violation per fault, each as field path and
/// problem. The message counts them all.
pub(crate) fn invalid<I, F, P>(faults: I) -> Status
where
    I: IntoIterator<Item = (F, P)>,
    F: Into<String>,
    P: Into<String>,
{
    let mut violations: Vec<FieldViolation> = faults
        .into_iter()
        .map(|(field, problem)| FieldViolation::new(field, problem))
        .collect();
    let first = |first: &FieldViolation| format!("{}: {}", first.field, first.description);
    let (all, fit) = (violations.len(), fitting(&violations));
    let message = match &violations[..] {
        [] => "the request is refused".to_owned(),
        [only] => first(only),
        _ if fit < all => format!("{all} faults; the first {fit} are named"),
        [head, ..] => format!("{all} faults, the first: {}", first(head)),
    };
    if fit < all {
        violations.truncate(fit);
        let left = format!("{} more faults are not shown", all - fit);
        violations.push(FieldViolation::new("", left));
    }
    let details = ErrorDetails::with_bad_request(violations);
    Status::with_error_details(Code::InvalidArgument, message, details)
}

/// How many violations a client takes.
fn fitting(violations: &[FieldViolation]) -> usize {
    // Tags and lengths of one violation.
    const FRAMING: usize = 16;
    let mut bytes = 0;
    violations
        .iter()
        .take_while(|violation| {
            bytes += violation.field.len() + violation.description.len() + FRAMING;
            bytes <= DETAILS_MAX
        })
        .count()
}

/// One field is wrong.
pub(crate) fn invalid_field(field: &str, problem: impl ToString) -> Status {
    invalid([(field, problem.to_string())])
}

/// The state has not been read yet.
pub(crate) fn not_loaded() -> Status {
    retry(
        Code::Unavailable,
        "the store has not been read yet".to_owned(),
        STORE_RETRY,
    )
}

/// It is not known which balancers take part.
pub(crate) fn no_balancers() -> Status {
    retry(
        Code::Unavailable,
        "the set of balancers is not known here".to_owned(),
        STORE_RETRY,
    )
}

/// The process is about to end.
pub(crate) fn stopping() -> Status {
    retry(
        Code::Unavailable,
        "this config service is stopping; another replica takes over".to_owned(),
        STOPPING_RETRY,
    )
}

/// The store could not be reached for a while.
pub(crate) fn cut_off() -> Status {
    retry(
        Code::Unavailable,
        "this config service is cut off from its store; another replica may not be".to_owned(),
        STORE_RETRY,
    )
}

/// Other requests take so many bytes by now.
pub(crate) fn full(bytes: usize) -> Status {
    retry(
        Code::ResourceExhausted,
        format!(
            "{} MiB of requests are being received or worked on already",
            bytes >> 20
        ),
        FULL_RETRY,
    )
}

fn retry(code: Code, message: String, after: Duration) -> Status {
    Status::with_error_details(code, message, ErrorDetails::with_retry_info(Some(after)))
}

pub(crate) fn of_store(error: &StoreError) -> Status {
    match error {
        StoreError::Unavailable { .. } => retry(Code::Unavailable, error.to_string(), STORE_RETRY),
        StoreError::Corrupt { .. } => Status::data_loss(error.to_string()),
        StoreError::Sealed(_) => Status::failed_precondition(error.to_string()),
    }
}

pub(crate) fn of_write(error: WriteError) -> Status {
    match error {
        WriteError::Refused(refusal) => of_refusal(refusal),
        WriteError::Outdated { .. } => {
            // Trying again unchanged is of no use, so there is no hint to retry.
            Status::aborted(error.to_string())
        }
        WriteError::RequestIdReused { .. } => Status::already_exists(error.to_string()),
        WriteError::Contended => retry(Code::Aborted, error.to_string(), CONTENDED_RETRY),
        WriteError::Store(error) => of_store(&error),
        WriteError::Panicked(_) => Status::internal(error.to_string()),
    }
}

fn of_refusal(refusal: Refusal) -> Status {
    let message = refusal.to_string();
    match refusal {
        Refusal::Invalid(violations) => invalid(
            violations
                .into_iter()
                .map(|violation| (violation.path, violation.problem)),
        ),
        Refusal::NotFound(_) => Status::not_found(message),
        Refusal::InUse { users, .. } => {
            let violations: Vec<PreconditionViolation> = users
                .into_iter()
                .take(PRECONDITIONS_MAX)
                .map(|user| {
                    let subject = format!("{}.{}", user.resource, user.field);
                    PreconditionViolation::new("IN_USE", subject, user.problem)
                })
                .collect();
            precondition(message, violations)
        }
        Refusal::OnTrial { .. } | Refusal::NotOnTrial { .. } | Refusal::OtherOnTrial { .. } => {
            let violation = PreconditionViolation::new("ROLLOUT", "revision", message.clone());
            precondition(message, vec![violation])
        }
        Refusal::MassDeletion(mass) => {
            let violation =
                PreconditionViolation::new("MASS_DELETION", "resources", mass.to_string());
            precondition(message, vec![violation])
        }
    }
}

fn precondition(message: String, violations: Vec<PreconditionViolation>) -> Status {
    let details = ErrorDetails::with_precondition_failure(violations);
    Status::with_error_details(Code::FailedPrecondition, message, details)
}

/// Users of a resource that are named in the details.
const PRECONDITIONS_MAX: usize = 32;

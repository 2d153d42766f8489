//! Reads requests; a fault is answered with the path of its field.

use std::{fmt::Display, str::FromStr};

use anyport_model::fault::Fault;
use anyport_proto::{convert::read_duration, v1};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::{health::DialReport, membership::OriginKey};

/// A field that holds a name.
pub(super) fn field<T>(path: &str, text: &str) -> Result<T, Status>
where
    T: FromStr,
    T::Err: Display,
{
    text.parse()
        .map_err(|problem| refuse(&Fault::new(path, problem)))
}

pub(super) fn reports(request: v1::ReportOriginsRequest) -> Result<Vec<DialReport>, Status> {
    let reports = request.origins.into_iter().enumerate();
    reports
        .map(|(index, report)| {
            let path = |field: &str| format!("origins[{index}].{field}");
            let took = report.connect_time.map(read_duration).transpose();
            Ok(DialReport {
                key: OriginKey {
                    pool: field(&path("pool"), &report.pool)?,
                    origin: field(&path("origin"), &report.origin)?,
                },
                dials: report.dials,
                failures: report.failures,
                last_failure: report.last_failure,
                open: report.open_connections,
                took: took.map_err(|problem| refuse(&Fault::new(path("connect_time"), problem)))?,
            })
        })
        .collect()
}

fn refuse(fault: &Fault) -> Status {
    let details = ErrorDetails::with_bad_request_violation(&fault.field, &fault.problem);
    Status::with_error_details(Code::InvalidArgument, fault.to_string(), details)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_bad_name_is_refused_with_its_path() {
        let good = v1::OriginReport {
            pool: "game".into(),
            origin: "a".into(),
            ..Default::default()
        };
        let bad = v1::OriginReport {
            origin: "no name".into(),
            ..good.clone()
        };
        let refused = reports(v1::ReportOriginsRequest {
            edge: "edge".into(),
            origins: vec![good, bad],
        })
        .unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
        let violations = refused.get_details_bad_request().unwrap().field_violations;
        assert_eq!(violations[0].field, "origins[1].origin");
        assert!(violations[0].description.contains("\"no name\" is no name"));
    }
}

//! The admin pages of a service, over the plainest HTTP there is.

use std::{io, net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

const PATIENCE: Duration = Duration::from_secs(5);

/// The body of `/metrics`.
pub async fn metrics(server: SocketAddr) -> io::Result<String> {
    timeout(PATIENCE, get(server, "/metrics"))
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

/// HTTP/1.0 has neither chunks nor a second request: the body is the rest.
async fn get(server: SocketAddr, path: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect(server).await?;
    let request = format!("GET {path} HTTP/1.0\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    match head.split(' ').nth(1) {
        Some("200") => Ok(body.to_owned()),
        _ => Err(io::Error::other(format!("{path}: {head}"))),
    }
}

/// The values of all series of `name`, added up.
pub fn sum(metrics: &str, name: &str) -> f64 {
    let values = metrics.lines().filter_map(|line| {
        let rest = line.strip_prefix(name)?;
        let ours = rest.starts_with(['{', ' ']);
        let value = rest.rsplit(' ').next()?;
        if ours {
            value.parse::<f64>().ok()
        } else {
            None
        }
    });
    values.sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_of_one_name_are_added_and_no_others() {
        let text = "# HELP opened x\n# TYPE opened counter\n\
                    opened{app=\"a b\"} 3\nopened{app=\"c\"} 4\nopened_total 100\nplain 2\n";
        assert_eq!(sum(text, "opened"), 7.0);
        assert_eq!(sum(text, "plain"), 2.0);
        assert_eq!(sum(text, "absent"), 0.0);
    }
}

//! The edges that a command asks about connections. The config service knows
//! where they are; one that is named by its URL is found without it.

use anyport_node::rpc::{Channel, ServerUrl};
use anyport_proto::v1::{self, edge_service_client::EdgeServiceClient};
use tonic::Status;

use super::Context;
use crate::{
    console::warn,
    failure::{Exit, Failure},
};

#[derive(Debug, clap::Args)]
pub(super) struct EdgeArgs {
    /// Only this edge, by name, or by the URL of its gRPC service, which also
    /// works while the config service is gone; may be given several times
    #[arg(long, value_name = "NAME|URL")]
    edge: Vec<String>,
}

/// The edges to ask.
pub(super) struct Found {
    pub(super) edges: Vec<Edge>,
    /// Why one that is connected cannot be asked; the others are, all the same.
    pub(super) failed: Option<Failure>,
}

/// An edge that can be asked.
#[derive(Clone)]
pub(super) struct Edge {
    pub(super) name: String,
    url: ServerUrl,
    channel: Channel,
}

impl Edge {
    pub(super) fn client(&self) -> EdgeServiceClient<Channel> {
        EdgeServiceClient::new(self.channel.clone())
    }

    /// What an answer that is a failure means for a command that was to do `what`.
    pub(super) fn failure(&self, what: &str, status: &Status) -> Failure {
        Failure::of_edge(what, &self.name, &self.url, status)
    }
}

/// Tells of an earlier agent of an edge whose `what` are not among the others'.
pub(super) fn warn_of_missing(edge: &str, what: &str, agent: &v1::MissingAgent) {
    let v1::MissingAgent { pid, reason } = agent;
    warn(format_args!(
        "edge {edge}: the {what} of an earlier agent (process {pid}) are missing: {reason}"
    ));
}

impl EdgeArgs {
    /// As if this was given, a name or a URL.
    pub(super) fn only(edge: String) -> Self {
        Self { edge: vec![edge] }
    }

    /// The one that is named.
    pub(super) async fn find_one(&self, context: &Context) -> Result<Edge, Failure> {
        let Found { mut edges, failed } = self.find(context).await?;
        let none = || failed.unwrap_or_else(|| Failure::refused("no edge is named"));
        edges.pop().ok_or_else(none)
    }

    /// Those that are named, each of them, or all that are connected and can be
    /// asked; at least one.
    pub(super) async fn find(&self, context: &Context) -> Result<Found, Failure> {
        let by_url = |given: &&String| given.contains("://");
        let (mut edges, mut failed) = (Vec::new(), None);
        for given in self.edge.iter().filter(by_url) {
            let url: ServerUrl = given.parse().map_err(|error| {
                Failure::new(Exit::Usage, format_args!("edge {given}: {error}"))
            })?;
            edges.push(edge(context, given.clone(), url)?);
        }
        let names: Vec<&String> = self.edge.iter().filter(|given| !by_url(given)).collect();
        if names.is_empty() && !edges.is_empty() {
            return Ok(Found { edges, failed });
        }
        let listed = context.connection.nodes(v1::NodeRole::Edge).await?;
        let wanted = |node: &&v1::NodeStatus| names.is_empty() || names.contains(&&node.name);
        for name in &names {
            if !listed.nodes.iter().any(|node| node.name == **name) {
                return Err(
                    Failure::refused(format_args!("there is no edge {name:?} connected")).remedy(
                        "`anyport get edges` shows those that are; one by its URL is found too",
                    ),
                );
            }
        }
        for node in listed.nodes.iter().filter(wanted) {
            match address(node, context.connection.url()) {
                Ok(url) => edges.push(edge(context, node.name.clone(), url)?),
                Err(failure) if names.is_empty() => failed = Some(failure),
                Err(failure) => return Err(failure),
            }
        }
        if edges.is_empty() {
            return Err(failed.unwrap_or_else(|| {
                Failure::refused("no edge is connected to the config service")
                    .remedy("name one by its URL with --edge")
            }));
        }
        Ok(Found { edges, failed })
    }
}

fn edge(context: &Context, name: String, url: ServerUrl) -> Result<Edge, Failure> {
    let channel = context.connection.edge(&url)?;
    Ok(Edge { name, url, channel })
}

/// Where a connected edge is asked.
fn address(node: &v1::NodeStatus, server: &ServerUrl) -> Result<ServerUrl, Failure> {
    let refused = |what: &str| {
        let what = format!("edge {} {what}, so it cannot be asked from here", node.name);
        let remedy = "run this on its host and name the edge by its URL, or start the edge with \
                      --listen on an address that can be reached, or with --advertise";
        Failure::refused(what).remedy(remedy)
    };
    if node.address.is_empty() {
        return Err(refused("does not say where it listens"));
    }
    let url: ServerUrl = node
        .address
        .parse()
        .map_err(|_| refused("says an address that is no URL"))?;
    // Another host's loopback would be taken for this one's.
    if is_loopback(&url) && !is_loopback(server) {
        return Err(refused("listens on its own host only"));
    }
    Ok(url)
}

fn is_loopback(url: &ServerUrl) -> bool {
    let host = url.uri().host().unwrap_or_default();
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let address = host.parse::<std::net::IpAddr>();
    host == "localhost" || address.is_ok_and(|ip| ip.to_canonical().is_loopback())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_loopback_of_another_host_is_not_taken_for_ours() {
        let node = |address: &str| v1::NodeStatus {
            name: "fra1".to_owned(),
            address: address.to_owned(),
            ..v1::NodeStatus::default()
        };
        let here: ServerUrl = "http://127.0.0.1:7400".parse().unwrap();
        let there: ServerUrl = "https://config.example:7400".parse().unwrap();
        let local = node("http://[::1]:7420");
        assert!(address(&local, &here).is_ok());
        let refused = address(&local, &there).unwrap_err().to_string();
        assert!(
            refused.contains("fra1 listens on its own host only"),
            "{refused}"
        );
        assert!(address(&node("https://10.0.0.7:7420"), &there).is_ok());
        assert!(address(&node(""), &here).is_err());
    }
}

//! A revision that some edges try before all others get it.

#![allow(clippy::unwrap_used)]

mod support;

use std::time::{Duration, Instant};

use anyport_proto::{
    convert::write_duration,
    v1::{self, sync_request::Message},
};
use support::{
    etcd::EtcdServer,
    eventually,
    resources::{app, app_to, many, pool, reference},
    service::{Service, embedded},
    soon,
    subscriber::{Subscriber, balancer, edge},
};
use tonic::{Code, Status};
use tonic_types::StatusExt;

fn canary(edges: &[&str], promote_after: Option<Duration>) -> v1::Canary {
    v1::Canary {
        edges: edges.iter().map(ToString::to_string).collect(),
        promote_after: promote_after.map(write_duration),
        manual: promote_after.is_none(),
    }
}

/// One app is changed, to be tried by `edges`.
async fn try_change(
    service: &Service,
    edges: &[&str],
    promote_after: Option<Duration>,
) -> Result<v1::ApplyResponse, Status> {
    service
        .apply_request(v1::ApplyRequest {
            resources: vec![app("app-0", 9_000)],
            canary: Some(canary(edges, promote_after)),
            ..Default::default()
        })
        .await
}

async fn rollout(service: &Service) -> Option<v1::RolloutStatus> {
    let mut client = service.client();
    let answer = client.list_nodes(v1::ListNodesRequest::default());
    soon("nodes", answer).await.unwrap().into_inner().rollout
}

async fn promote(service: &Service, revision: u64) -> Result<u64, Status> {
    let request = v1::PromoteRequest {
        revision,
        ..Default::default()
    };
    let mut client = service.client();
    let answer = soon("promote", client.promote(request)).await?;
    Ok(answer.into_inner().revision)
}

/// A service with one revision, and two edges that have it.
struct Scene {
    service: Service,
    first: v1::ApplyResponse,
    tries: Subscriber,
    other: Subscriber,
    _directory: tempfile::TempDir,
}

impl Scene {
    /// The change that `tries` tries; revision 2.
    async fn begin(&self, promote_after: Option<Duration>) -> v1::ApplyResponse {
        let tried = try_change(&self.service, &["tries"], promote_after).await;
        tried.unwrap()
    }
}

async fn scene() -> Scene {
    let directory = tempfile::tempdir().unwrap();
    let service = Service::ready(embedded(directory.path())).await;
    let first = service.apply(many(3)).await.unwrap();
    let mut tries = Subscriber::connect(&service, edge("tries")).await;
    let mut other = Subscriber::connect(&service, edge("other")).await;
    assert_eq!(tries.take().await.revision, 1);
    assert_eq!(other.take().await.revision, 1);
    Scene {
        service,
        first,
        tries,
        other,
        _directory: directory,
    }
}

fn trial(revision: u64, app: &str, ended: u64, failed: u64) -> Message {
    let since = Some(v1::Outcomes { ended, failed });
    Message::Report(v1::Report {
        trial: Some(v1::TrialReport {
            revision,
            since,
            apps: vec![v1::AppTrial {
                app: app.to_owned(),
                since,
                before: Some(v1::Outcomes {
                    ended: 500,
                    failed: 1,
                }),
                status: 521,
            }],
        }),
        ..Default::default()
    })
}

#[tokio::test]
async fn only_who_tries_it_gets_it_until_it_is_promoted() {
    let mut scene = scene().await;
    let tried = scene.begin(None).await;
    assert_eq!(tried.revision, 2);
    let update = scene.tries.take().await;
    assert_eq!(
        (update.revision, update.full, update.trial),
        (2, false, true)
    );
    assert_eq!(update.state_hash, tried.state_hash);
    assert_eq!(update.upserts.len(), 1);
    assert!(scene.other.nothing_comes().await);
    // Nor does who comes now, whatever it is.
    let mut late = Subscriber::connect(&scene.service, edge("late")).await;
    let update = late.take().await;
    assert_eq!((update.revision, update.trial), (1, false));
    let mut probes = Subscriber::connect(&scene.service, balancer("b")).await;
    assert_eq!(probes.take().await.revision, 1);
    let status = rollout(&scene.service).await.unwrap();
    assert_eq!(status.rollout.unwrap().stable_revision, 1);
    let wanted = |nodes: Vec<v1::NodeStatus>, name: &str| {
        let node = nodes.into_iter().find(|node| node.name == name);
        node.unwrap().wanted_revision
    };
    assert_eq!(wanted(scene.service.nodes().await, "tries"), 2);
    assert_eq!(wanted(scene.service.nodes().await, "late"), 1);

    assert_eq!(promote(&scene.service, 2).await.unwrap(), 3);
    for subscriber in [&mut scene.tries, &mut scene.other, &mut late, &mut probes] {
        let update = subscriber.take().await;
        assert_eq!((update.revision, update.trial), (3, false));
        assert_eq!(update.state_hash, tried.state_hash);
    }
    assert_eq!(rollout(&scene.service).await, None);
    let history = scene.service.history().await;
    assert_eq!(history[0].promotion_of, 2);
    let tried = history[1].rollout.clone().unwrap().canary.unwrap();
    assert_eq!(tried.edges, ["tries"]);
}

#[tokio::test]
async fn what_goes_well_for_long_enough_is_for_all() {
    let mut scene = scene().await;
    let hold = Duration::from_millis(300);
    let begun = Instant::now();
    scene.begin(Some(hold)).await;
    // It has to have it; how long it goes well is counted from the commit.
    let update = scene.tries.next().await.unwrap();
    assert!(scene.other.nothing_comes().await);
    scene.tries.ack(&update, Vec::new()).await;
    assert_eq!(scene.other.take().await.revision, 3);
    let last = &scene.service.history().await[0];
    assert_eq!((last.promotion_of, &*last.author), (2, "config-service"));
    let seconds = last.message.strip_prefix("went well on tries for ");
    let seconds = seconds.and_then(|rest| rest.strip_suffix(" s: 0 of 0 connections failed"));
    let seconds: u64 = seconds.expect(&last.message).parse().unwrap();
    assert!(seconds <= begun.elapsed().as_secs(), "{seconds}");
}

/// Taken back: `other` never sees it, `tries` is led back.
async fn is_taken_back(scene: &mut Scene, why: &str) {
    let back = scene.tries.take().await;
    assert_eq!((back.revision, back.trial), (3, false));
    assert_eq!(back.state_hash, scene.first.state_hash);
    let update = scene.other.take().await;
    assert_eq!(update.revision, 3);
    assert_eq!((update.upserts.len(), update.removals.len()), (0, 0));
    let last = &scene.service.history().await[0];
    assert_eq!((last.rollback_of, &*last.author), (1, "config-service"));
    assert_eq!(last.message, format!("revision 2 is taken back: {why}"));
    assert_eq!(rollout(&scene.service).await, None);
}

#[tokio::test]
async fn a_rejection_takes_it_back() {
    let mut scene = scene().await;
    scene.begin(None).await;
    let update = scene.tries.next().await.unwrap();
    let rejection = |name: &str| v1::Rejection {
        resource: Some(reference(v1::Kind::App, name)),
        reason: "no such device".to_owned(),
    };
    scene.tries.ack(&update, vec![rejection("app-0")]).await;
    is_taken_back(
        &mut scene,
        "edge tries rejects it: app \"app-0\": no such device",
    )
    .await;
}

/// What was not changed, and was rejected before as well, says nothing of the change.
#[tokio::test]
async fn a_rejection_of_something_else_does_not() {
    let mut scene = scene().await;
    scene.begin(None).await;
    let update = scene.tries.next().await.unwrap();
    let rejection = v1::Rejection {
        resource: Some(reference(v1::Kind::App, "app-1")),
        reason: "no such device".to_owned(),
    };
    scene.tries.ack(&update, vec![rejection]).await;
    assert!(scene.other.nothing_comes().await);
    assert_eq!(promote(&scene.service, 0).await.unwrap(), 3);
    assert_eq!(scene.other.take().await.revision, 3);
}

#[tokio::test]
async fn connections_that_fail_take_it_back() {
    let mut scene = scene().await;
    scene.begin(None).await;
    scene.tries.take().await;
    // As often as before, and of another revision.
    scene.tries.say(trial(2, "app-0", 500, 2)).await;
    scene.tries.say(trial(1, "app-0", 500, 500)).await;
    assert!(scene.other.nothing_comes().await);
    scene.tries.say(trial(2, "app-0", 8, 5)).await;
    let why = "edge tries, app app-0: 5 of 8 connections failed, most with status 521; before, \
               1 of 500 connections failed";
    is_taken_back(&mut scene, why).await;
}

#[tokio::test]
async fn an_edge_that_is_lost_takes_it_back() {
    let mut scene = scene().await;
    scene.begin(None).await;
    scene.tries.take().await;
    drop(scene.tries);
    assert_eq!(scene.other.take().await.revision, 3);
    let last = &scene.service.history().await[0];
    let why = "revision 2 is taken back: edge tries is gone for 10 s";
    assert_eq!(last.message, why);
}

#[tokio::test]
async fn nothing_else_is_written_meanwhile_and_each_refusal_says_what_may_be() {
    let mut scene = scene().await;
    let refused = promote(&scene.service, 0).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    let words = "no revision is being tried; the latest, 1, is for all";
    assert_eq!(refused.message(), words);

    let refused = try_change(&scene.service, &["tries", "else"], None)
        .await
        .unwrap_err();
    let faults = refused.get_details_bad_request().unwrap().field_violations;
    assert_eq!(faults[0].field, "canary.edges[1]");
    let words = "edge else is not connected; those that are: other, tries";
    assert_eq!(faults[0].description, words);

    scene.begin(None).await;
    scene.tries.take().await;
    let refused = scene
        .service
        .apply(vec![app("app-1", 9_001)])
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    let words = "revision 2 is being tried by tries: promote it, or roll back to 1";
    assert_eq!(refused.message(), words);
    let refused = promote(&scene.service, 1).await.unwrap_err();
    let words = "revision 1 is not the one that is being tried, which is 2";
    assert_eq!(refused.message(), words);

    scene.service.roll_back(1).await.unwrap();
    assert_eq!(scene.tries.take().await.revision, 3);
    assert_eq!(scene.other.take().await.revision, 3);
    scene
        .service
        .apply(vec![app("app-1", 9_001)])
        .await
        .unwrap();
}

/// Back to what is tried is an end of the trial too, although nothing changes by it.
#[tokio::test]
async fn a_rollback_to_what_is_tried_is_for_all() {
    let mut scene = scene().await;
    let tried = scene.begin(None).await;
    scene.tries.take().await;
    scene.service.roll_back(2).await.unwrap();
    for subscriber in [&mut scene.tries, &mut scene.other] {
        let update = subscriber.take().await;
        assert_eq!((update.revision, update.trial), (3, false));
        assert_eq!(update.state_hash, tried.state_hash);
    }
    assert_eq!(rollout(&scene.service).await, None);
}

/// Whose answer was lost hears what was done, although the edge is not there any more.
#[tokio::test]
async fn a_repeated_request_is_answered_as_before() {
    let mut scene = scene().await;
    let request = v1::ApplyRequest {
        resources: vec![app("app-0", 9_000)],
        canary: Some(canary(&["tries"], None)),
        request_id: "once".to_owned(),
        ..Default::default()
    };
    let first = scene.service.apply_request(request.clone()).await.unwrap();
    scene.tries.take().await;
    drop(scene.tries);
    eventually("it is gone", || async {
        (scene.service.nodes().await.len() == 1).then_some(())
    })
    .await;
    let again = scene.service.apply_request(request).await.unwrap();
    assert_eq!(again.revision, first.revision);
}

/// A trial is in the store: it goes on at another replica, and after a restart of all.
#[tokio::test]
async fn a_trial_outlives_whoever_began_it() {
    let server = EtcdServer::start().await;
    let one = Service::ready(server.url("trial")).await;
    let other = Service::ready(server.url("trial")).await;
    one.apply(vec![many(1).remove(0), pool("p", ""), app_to("a", 1, "p")])
        .await
        .unwrap();
    eventually("the other replica has it", || async {
        (other.list().await.0 == 1).then_some(())
    })
    .await;
    let mut tries = Subscriber::connect(&other, edge("tries")).await;
    let mut stays = Subscriber::connect(&other, edge("stays")).await;
    tries.take().await;
    stays.take().await;
    eventually("both are known", || async {
        (one.nodes().await.len() == 2).then_some(())
    })
    .await;
    let request = v1::ApplyRequest {
        resources: vec![app_to("a", 2, "p")],
        canary: Some(canary(&["tries"], None)),
        ..Default::default()
    };
    one.apply_request(request).await.unwrap();
    assert_eq!(tries.take().await.revision, 2);
    assert!(stays.nothing_comes().await);
    one.kill().await;
    other.kill().await;
    drop((tries, stays));

    let again = Service::ready(server.url("trial")).await;
    let mut tries = Subscriber::connect(&again, edge("tries")).await;
    let mut stays = Subscriber::connect(&again, edge("stays")).await;
    let update = tries.take().await;
    assert_eq!((update.revision, update.trial), (2, true));
    assert_eq!(stays.take().await.revision, 1);
    tries.say(trial(2, "a", 9, 9)).await;
    let back = tries.take().await;
    assert_eq!(back.revision, 3);
    assert_eq!(stays.take().await.state_hash, back.state_hash);
}

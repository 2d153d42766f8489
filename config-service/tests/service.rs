//! A whole service on the embedded store, over real sockets.

#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use anyport_config_service::store::embedded::Embedded;
use anyport_proto::v1::{self, change::Action, sync_request::Message};
use support::{
    PATIENCE, eventually,
    program::Program,
    resources::{app, app_on, app_to, many, monitor, pool, prefix, reference},
    service::{Service, embedded},
    soon,
    subscriber::{Subscriber, balancer, edge},
};
use tempfile::TempDir;
use tonic::{Code, Status};
use tonic_types::StatusExt;

async fn fresh() -> (TempDir, Service) {
    let directory = tempfile::tempdir().unwrap();
    let service = Service::ready(embedded(directory.path())).await;
    (directory, service)
}

fn actions(changes: &[v1::Change]) -> Vec<(String, Action)> {
    let changes = changes.iter();
    changes
        .map(|change| (change.resource.clone().unwrap().name, change.action()))
        .collect()
}

fn violations(status: &Status) -> Vec<(String, String)> {
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    let details = status.get_details_bad_request().expect("a BadRequest");
    let violations = details.field_violations.into_iter();
    violations.map(|v| (v.field, v.description)).collect()
}

#[tokio::test]
async fn resources_are_applied_changed_and_deleted() {
    let (_directory, service) = fresh().await;
    let created = service
        .apply(vec![
            app_to("web", 80, "game"),
            prefix("198.51.100.0/24"),
            pool("game", ""),
        ])
        .await
        .unwrap();
    assert_eq!(created.revision, 1);
    let all = ["198.51.100.0/24", "game", "web"].map(|name| (name.to_owned(), Action::Created));
    assert_eq!(
        actions(&created.changes),
        all,
        "what is referred to comes first"
    );

    let mixed = service
        .apply_request(v1::ApplyRequest {
            resources: vec![prefix("198.51.100.0/24"), app("web", 81), app("new", 80)],
            prune: true,
            ..Default::default()
        })
        .await
        .unwrap();
    assert_eq!(mixed.revision, 2);
    let expected = [
        ("198.51.100.0/24", Action::Unchanged),
        ("game", Action::Deleted),
        ("new", Action::Created),
        ("web", Action::Updated),
    ];
    assert_eq!(
        actions(&mixed.changes),
        expected.map(|(name, action)| (name.to_owned(), action))
    );
    let updated = &mixed.changes[3];
    assert!(updated.before.is_some() && updated.after.is_some());

    let mut client = service.client();
    let gone = v1::DeleteRequest {
        resource: Some(reference(v1::Kind::App, "web")),
        ..Default::default()
    };
    let deleted = client.delete(gone.clone()).await.unwrap().into_inner();
    assert_eq!(deleted.revision, 3);
    assert_eq!(
        client.delete(gone).await.unwrap_err().code(),
        Code::NotFound
    );
    let (revision, resources) = service.list().await;
    assert_eq!((revision, resources.len()), (3, 2));
    service.stop().await;
}

#[tokio::test]
async fn an_apply_that_changes_nothing_makes_no_revision() {
    let (_directory, service) = fresh().await;
    let first = service.apply(many(3)).await.unwrap();
    let again = service.apply(many(3)).await.unwrap();
    assert_eq!(again.revision, 1);
    assert_eq!(again.state_hash, first.state_hash);
    assert!(
        actions(&again.changes)
            .iter()
            .all(|(_, action)| *action == Action::Unchanged)
    );
}

#[tokio::test]
async fn ten_faults_come_in_one_answer_and_nothing_is_stored() {
    let (_directory, service) = fresh().await;
    service
        .apply(vec![prefix("198.51.100.0/24"), app("present", 443)])
        .await
        .unwrap();
    let broken = vec![
        // 0: unreadable, so that apps 1 and 2 are not faulted for it.
        pool_without_origins("empty"),
        app_to("uses-empty", 1, "empty"),
        app_to("lost", 2, "nowhere"),
        prefix("203.0.113.7/24"),
        app_on("inside-what-was-meant", "203.0.113.0/25", 3),
        app_on("outside", "192.88.99.1", 4),
        app("same", 5),
        app("same", 6),
        app("", 7),
        pool("watched", "no-monitor"),
        app("conflict", 443),
        v1::Resource { kind: None },
        app_on("bits", "198.51.100.1/24", 8),
        pool_on("loop", "198.51.100.9:80"),
    ];
    let refused = service.apply(broken.clone()).await.unwrap_err();
    let mut found = violations(&refused);
    found.sort();
    let mut fields: Vec<&str> = found.iter().map(|(field, _)| field.as_str()).collect();
    fields.sort_unstable();
    assert_eq!(
        fields,
        [
            // The later of two apps in conflict is the one that is named.
            r#"app["present"].edge_ips[0]"#,
            "resources[0].pool.origins",
            "resources[11]",
            "resources[12].app.edge_ips[0]",
            "resources[13].pool.origins[0].address",
            "resources[2].app.origin_pool",
            "resources[3].prefix.cidr",
            "resources[5].app.edge_ips[0]",
            "resources[7].app.name",
            "resources[8].app.name",
            "resources[9].pool.monitor",
        ],
        "{found:#?}"
    );
    assert!(
        refused.message().starts_with("11 faults, the first: "),
        "{}",
        refused.message()
    );

    let dry = service
        .apply_request(v1::ApplyRequest {
            resources: broken,
            dry_run: true,
            ..Default::default()
        })
        .await
        .unwrap_err();
    assert_eq!(
        violations(&dry).len(),
        found.len(),
        "a dry run finds the same"
    );
    let (revision, resources) = service.list().await;
    assert_eq!((revision, resources.len()), (1, 2), "nothing was stored");
}

fn pool_without_origins(name: &str) -> v1::Resource {
    let mut resource = pool(name, "");
    if let Some(v1::resource::Kind::Pool(pool)) = &mut resource.kind {
        pool.origins.clear();
    }
    resource
}

fn pool_on(name: &str, address: &str) -> v1::Resource {
    let mut resource = pool(name, "");
    if let Some(v1::resource::Kind::Pool(pool)) = &mut resource.kind {
        pool.origins[0].address = address.to_owned();
    }
    resource
}

#[tokio::test]
async fn more_faults_than_a_client_can_take_are_counted() {
    let (_directory, service) = fresh().await;
    let lost = (1..=500).map(|n| app_to(&format!("app-{n}"), n, "nowhere"));
    let all = [prefix("198.51.100.0/24")]
        .into_iter()
        .chain(lost)
        .collect();
    let refused = service.apply(all).await.unwrap_err();
    assert!(
        refused.message().starts_with("500 faults; the first "),
        "{}",
        refused.message()
    );
    let found = violations(&refused);
    let named = found.len() - 1;
    assert_eq!(
        refused.message(),
        format!("500 faults; the first {named} are named")
    );
    let (field, rest) = found.last().unwrap();
    let left = 500 - (found.len() - 1);
    assert_eq!(
        (field.as_str(), rest.clone()),
        ("", format!("{left} more faults are not shown"))
    );
}

#[tokio::test]
async fn a_dry_run_says_what_would_change_and_changes_nothing() {
    let (_directory, service) = fresh().await;
    let request = v1::ApplyRequest {
        resources: many(2),
        dry_run: true,
        request_id: "once".to_owned(),
        ..Default::default()
    };
    let dry = service.apply_request(request.clone()).await.unwrap();
    assert_eq!((dry.revision, dry.changes.len()), (0, 3));
    assert_eq!(service.list().await.0, 0);
    let wet = v1::ApplyRequest {
        dry_run: false,
        ..request
    };
    assert_eq!(service.apply_request(wet).await.unwrap().revision, 1);
}

#[tokio::test]
async fn a_repeated_request_is_done_once_and_answered_alike() {
    let (_directory, service) = fresh().await;
    let request = v1::ApplyRequest {
        resources: many(2),
        request_id: "r-1".to_owned(),
        ..Default::default()
    };
    let first = service.apply_request(request.clone()).await.unwrap();
    service.apply(vec![app("app-0", 1000)]).await.unwrap();
    let again = service.apply_request(request.clone()).await.unwrap();
    assert_eq!(
        again, first,
        "the second is the first's answer, though more has changed"
    );
    assert_eq!(service.list().await.0, 2);
    let other = v1::ApplyRequest {
        resources: many(3),
        ..request
    };
    let reused = service.apply_request(other).await.unwrap_err();
    assert_eq!(reused.code(), Code::AlreadyExists, "{reused:?}");
    let said = "request_id \"r-1\" was used for another request, which made revision 1";
    assert_eq!(reused.message(), said);

    let delete = v1::DeleteRequest {
        resource: Some(reference(v1::Kind::App, "app-1")),
        request_id: "r-2".to_owned(),
        ..Default::default()
    };
    let mut client = service.client();
    let first = client.delete(delete.clone()).await.unwrap().into_inner();
    let again = client.delete(delete).await.unwrap().into_inner();
    assert_eq!(first, again);
}

#[tokio::test]
async fn what_would_delete_much_is_refused_unless_the_request_says_so() {
    let (_directory, service) = fresh().await;
    service.apply(many(12)).await.unwrap();
    let refused = |status: Status, said: &str| {
        assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}");
        let details = status.get_details_precondition_failure().unwrap();
        let violation = &details.violations[0];
        let told = (violation.r#type.as_str(), violation.description.as_str());
        assert_eq!(told, ("MASS_DELETION", said));
        assert!(status.message().contains(said), "{status:?}");
        assert!(status.message().contains("--allow-mass-deletion"));
    };
    let prune = |resources, allow_mass_deletion, dry_run| v1::ApplyRequest {
        resources,
        prune: true,
        allow_mass_deletion,
        dry_run,
        ..Default::default()
    };
    let half = service.apply_request(prune(many(5), false, false)).await;
    refused(half.unwrap_err(), "7 of 13 resources");
    let other = vec![prefix("198.51.100.0/24"), app("other", 99)];
    let others = service.apply_request(prune(other, false, false)).await;
    refused(others.unwrap_err(), "all 12 apps, 12 of 13 resources");
    let dry = service.apply_request(prune(Vec::new(), false, true)).await;
    let dry = dry.unwrap();
    assert_eq!(
        dry.mass_deletion,
        "all 12 apps, the only prefix, all 13 resources"
    );
    assert_eq!((dry.revision, dry.changes.len()), (1, 13));
    let little = service.apply_request(prune(many(8), false, false)).await;
    assert_eq!(little.unwrap().revision, 2);

    let rollback = |revision, allow_mass_deletion| v1::RollbackRequest {
        revision,
        allow_mass_deletion,
        ..Default::default()
    };
    let all = service.apply_request(prune(Vec::new(), true, false)).await;
    assert_eq!(all.unwrap().revision, 3);
    let mut client = service.client();
    let back = client.rollback(rollback(1, false)).await;
    assert_eq!(
        back.unwrap().into_inner().revision,
        4,
        "this deletes nothing"
    );
    let emptied = client.rollback(rollback(3, false)).await;
    refused(
        emptied.unwrap_err(),
        "all 12 apps, the only prefix, all 13 resources",
    );
    assert_eq!(service.list().await.0, 4);
    let emptied = client.rollback(rollback(3, true)).await;
    assert_eq!(emptied.unwrap().into_inner().revision, 5);
}

#[tokio::test]
async fn what_is_too_large_or_too_many_is_refused_by_its_limit() {
    let (_directory, service) = fresh().await;
    // Few, but each with very many names.
    let names: Vec<String> = (0..1_500).map(|n| format!("host-{n}.example")).collect();
    let authority = rcgen::generate_simple_self_signed(names).unwrap();
    let mut large = app_to("large", 1, "game");
    if let Some(v1::resource::Kind::App(app)) = &mut large.kind {
        app.tls = v1::TlsMode::Strict.into();
        app.certificate = "large".to_owned();
        app.origin_ca = authority.cert.pem().repeat(60);
    }
    let refused = service.apply(vec![prefix("198.51.100.0/24"), large]).await;
    let found = violations(&refused.unwrap_err());
    let (_, problem) = found
        .iter()
        .find(|(field, _)| field == "resources[1].app")
        .unwrap_or_else(|| panic!("{found:?}"));
    assert!(problem.starts_with("takes "), "{problem}");
    assert!(
        problem.ends_with(" bytes; right is at most 1000000"),
        "{problem}"
    );

    let many: Vec<v1::Resource> = (0..200_001)
        .map(|n| monitor(&format!("monitor-{n}")))
        .collect();
    let refused = violations(&service.apply(many.clone()).await.unwrap_err());
    let (field, problem) = &refused[0];
    assert_eq!(field, "resources");
    assert_eq!(
        problem,
        "the request has more of them; right is at most 200000"
    );
    let most = service.apply(many[1..].to_vec()).await.unwrap();
    assert_eq!(most.revision, 1);
    // What is there counts too.
    let refused = violations(&service.apply(many[..1].to_vec()).await.unwrap_err());
    let (field, problem) = &refused[0];
    assert_eq!(field, "resources");
    assert_eq!(
        problem,
        "there would be 200001 resources; right is at most 200000"
    );
}

#[tokio::test]
async fn an_unexpected_revision_is_refused() {
    let (_directory, service) = fresh().await;
    service.apply(many(1)).await.unwrap();
    let request = |expected| v1::ApplyRequest {
        resources: vec![app("more", 99)],
        expected_revision: Some(expected),
        ..Default::default()
    };
    let refused = service.apply_request(request(0)).await.unwrap_err();
    assert_eq!(refused.code(), Code::Aborted);
    assert!(
        refused
            .message()
            .contains("the latest revision is 1, and 0 was expected")
    );
    assert_eq!(service.apply_request(request(1)).await.unwrap().revision, 2);
}

#[tokio::test]
async fn what_is_in_use_is_not_deleted_and_its_users_are_named() {
    let (_directory, service) = fresh().await;
    service
        .apply(vec![
            prefix("198.51.100.0/24"),
            monitor("quick"),
            pool("game", "quick"),
            app_to("web", 80, "game"),
        ])
        .await
        .unwrap();
    for (kind, name, message) in [
        (
            v1::Kind::Pool,
            "game",
            r#"pool "game" is in use: app "web" (origin_pool)"#,
        ),
        (
            v1::Kind::Monitor,
            "quick",
            r#"monitor "quick" is in use: pool "game" (monitor)"#,
        ),
        (
            v1::Kind::Prefix,
            "198.51.100.0/24",
            r#"prefix "198.51.100.0/24" is in use: app "web" (edge_ips[0])"#,
        ),
    ] {
        let request = v1::DeleteRequest {
            resource: Some(reference(kind, name)),
            ..Default::default()
        };
        let refused = service.client().delete(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition);
        assert_eq!(refused.message(), message);
        let details = refused.get_details_precondition_failure().expect("details");
        assert_eq!(details.violations.len(), 1);
    }
}

#[tokio::test]
async fn history_tells_who_and_why_and_a_rollback_is_a_revision_of_its_own() {
    let (_directory, service) = fresh().await;
    let apply = |resources, message: &str| v1::ApplyRequest {
        resources,
        author: "ana".to_owned(),
        message: message.to_owned(),
        ..Default::default()
    };
    let first = service
        .apply_request(apply(many(2), "begin"))
        .await
        .unwrap();
    service
        .apply_request(apply(vec![app("app-0", 700)], "move"))
        .await
        .unwrap();
    let back = service
        .client()
        .rollback(v1::RollbackRequest {
            revision: 1,
            message: "that was wrong".to_owned(),
            ..Default::default()
        })
        .await
        .unwrap()
        .into_inner();
    assert_eq!(back.revision, 3);
    assert_eq!(
        actions(&back.changes),
        [("app-0".to_owned(), Action::Updated)]
    );

    let mut client = service.client();
    let page = |page_token: &str| v1::HistoryRequest {
        page_size: 2,
        page_token: page_token.to_owned(),
    };
    let newest = client.history(page("")).await.unwrap().into_inner();
    let oldest = client
        .history(page(&newest.next_page_token))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(oldest.next_page_token, "");
    assert_eq!((newest.oldest_revision, oldest.oldest_revision), (1, 1));
    let all: Vec<v1::RevisionRecord> = newest
        .revisions
        .into_iter()
        .chain(oldest.revisions)
        .collect();
    let told: Vec<_> = all
        .iter()
        .map(|r| {
            (
                r.revision,
                &*r.message,
                r.created,
                r.updated,
                r.deleted,
                r.rollback_of,
            )
        })
        .collect();
    assert_eq!(
        told,
        [
            (3, "that was wrong", 0, 1, 0, 1),
            (2, "move", 0, 1, 0, 0),
            (1, "begin", 3, 0, 0, 0)
        ]
    );
    assert_eq!(all[2].author, "ana");
    assert_eq!(
        all[0].state_hash, first.state_hash,
        "the same state has the same hash"
    );
    let unknown = v1::RollbackRequest {
        revision: 9,
        ..Default::default()
    };
    let refused = client.rollback(unknown).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
    let said = "there is no revision 9 yet; the latest is 3";
    assert_eq!(refused.message(), said);
}

#[tokio::test]
async fn a_rollback_to_nothing_is_refused_and_deletes_nothing() {
    let (_directory, service) = fresh().await;
    service.apply(many(2)).await.unwrap();
    let nothing = v1::RollbackRequest::default();
    let refused = service.client().rollback(nothing).await.unwrap_err();
    let (field, problem) = violations(&refused).remove(0);
    assert_eq!(field, "revision");
    assert!(problem.contains("asked for by name"), "{problem}");
    let (revision, resources) = service.list().await;
    assert_eq!((revision, resources.len()), (1, 3));
}

#[tokio::test]
async fn all_pages_are_of_the_first_ones_revision() {
    let (_directory, service) = fresh().await;
    service.apply(many(9)).await.unwrap();
    let mut client = service.client();
    let request = |page_token: String| v1::ListRequest {
        kind: v1::Kind::App.into(),
        page_size: 4,
        page_token,
    };
    let mut page = client
        .list(request(String::new()))
        .await
        .unwrap()
        .into_inner();
    let mut names = Vec::new();
    loop {
        assert_eq!(page.revision, 1);
        for resource in page.resources {
            if let Some(v1::resource::Kind::App(app)) = resource.kind {
                names.push(app.name);
            }
        }
        if page.next_page_token.is_empty() {
            break;
        }
        // The state moves between the pages, again and again.
        let port = 2000 + names.len() as u16;
        service
            .apply(vec![app(&format!("app-5{port}"), port)])
            .await
            .unwrap();
        page = client
            .list(request(page.next_page_token))
            .await
            .unwrap()
            .into_inner();
    }
    let expected: Vec<String> = (0..9).map(|n| format!("app-{n}")).collect();
    assert_eq!(names, expected);
}

#[tokio::test]
async fn limits_of_texts_name_the_field() {
    let (_directory, service) = fresh().await;
    let request = v1::ApplyRequest {
        request_id: "x".repeat(129),
        author: "x".repeat(257),
        message: "x".repeat(4097),
        ..Default::default()
    };
    let refused = service.apply_request(request).await.unwrap_err();
    let fields: Vec<String> = violations(&refused)
        .into_iter()
        .map(|(field, _)| field)
        .collect();
    assert_eq!(fields, ["request_id", "author", "message"]);
}

#[tokio::test]
async fn an_edge_gets_the_state_and_then_what_changes() {
    let (_directory, service) = fresh().await;
    let first = service.apply(many(3)).await.unwrap();
    let mut subscriber = Subscriber::connect(&service, edge("e1")).await;
    let update = subscriber.take().await;
    assert!(update.full);
    assert_eq!((update.revision, update.upserts.len()), (1, 4));
    assert_eq!(update.state_hash, first.state_hash);
    assert!(update.committed_at.is_some());

    let mut client = service.client();
    service.apply(vec![app("app-1", 700)]).await.unwrap();
    let update = subscriber.take().await;
    assert_eq!(
        (update.full, update.base_revision, update.revision),
        (false, 1, 2)
    );
    assert_eq!(update.upserts.len(), 1);
    let delete = v1::DeleteRequest {
        resource: Some(reference(v1::Kind::App, "app-2")),
        ..Default::default()
    };
    client.delete(delete).await.unwrap();
    let update = subscriber.take().await;
    assert_eq!(update.removals, [reference(v1::Kind::App, "app-2")]);
    assert!(update.upserts.is_empty());
}

#[tokio::test]
async fn a_balancer_gets_pools_and_monitors_and_every_revision() {
    let (_directory, service) = fresh().await;
    let mut resources = many(2);
    resources.extend([monitor("quick"), pool("game", "quick")]);
    service.apply(resources).await.unwrap();
    let mut subscriber = Subscriber::connect(&service, balancer("b1")).await;
    let update = subscriber.take().await;
    assert_eq!(update.upserts.len(), 2, "{:?}", update.upserts);
    // An app is no matter of a balancer, but the revision is.
    service.apply(vec![app("more", 900)]).await.unwrap();
    let update = subscriber.take().await;
    assert_eq!(
        (update.revision, update.upserts.len(), update.full),
        (2, 0, false)
    );
}

#[tokio::test]
async fn a_slow_reader_gets_the_latest_state_and_none_in_between() {
    let (_directory, service) = fresh().await;
    service.apply(many(1)).await.unwrap();
    let mut subscriber = Subscriber::connect(&service, edge("slow")).await;
    let unanswered = subscriber.next().await.unwrap();
    for port in 100..120 {
        service.apply(vec![app("busy", port)]).await.unwrap();
    }
    assert!(subscriber.nothing_comes().await, "one update at a time");
    subscriber.ack(&unanswered, Vec::new()).await;
    let update = subscriber.take().await;
    assert_eq!((update.base_revision, update.revision), (1, 21));
    assert_eq!(update.upserts.len(), 1);
    assert!(subscriber.nothing_comes().await, "nothing is left over");
}

#[tokio::test]
async fn a_subscriber_resumes_from_what_it_holds_if_that_is_true() {
    let (_directory, service) = fresh().await;
    service.apply(many(3)).await.unwrap();
    let held = {
        let mut subscriber = Subscriber::connect(&service, edge("e1")).await;
        subscriber.take().await
    };
    service.apply(vec![app("app-0", 500)]).await.unwrap();

    let resuming = |revision, state_hash: &[u8]| v1::Subscribe {
        revision,
        state_hash: state_hash.to_vec(),
        ..edge("e1")
    };
    let mut honest = Subscriber::connect(&service, resuming(1, &held.state_hash)).await;
    let update = honest.take().await;
    assert_eq!(
        (update.full, update.base_revision, update.upserts.len()),
        (false, 1, 1)
    );
    drop(honest);

    let present = update;
    let mut at_once = Subscriber::connect(&service, resuming(2, &present.state_hash)).await;
    let update = at_once.take().await;
    assert_eq!(
        (update.full, update.revision, update.upserts.len()),
        (false, 2, 0)
    );
    drop(at_once);

    for (revision, hash) in [
        (1, &[7u8; 32][..]),
        (77, &held.state_hash),
        (1, b"short"),
        (0, b""),
    ] {
        let mut elsewhere = Subscriber::connect(&service, resuming(revision, hash)).await;
        let update = elsewhere.take().await;
        assert!(update.full, "{revision} {hash:?}");
        assert_eq!(update.upserts.len(), 4);
    }
}

#[tokio::test]
async fn a_file_that_was_restored_from_an_older_copy_is_told_by_the_nodes_that_know_better() {
    let (directory, service) = fresh().await;
    service.apply(many(1)).await.unwrap();
    service.stop().await;
    let copy = tempfile::tempdir().unwrap();
    let [file, saved] = [&directory, &copy].map(|at| at.path().join("config.redb"));
    // What a service that has stopped was about to send may keep it open a moment.
    let closed = || {
        eventually("the file is closed", || async {
            Embedded::open(directory.path()).ok().map(drop)
        })
    };
    closed().await;
    std::fs::copy(&file, &saved).unwrap();
    let service = Service::ready(embedded(directory.path())).await;
    let lost = service.apply(vec![app("lost", 700)]).await.unwrap();
    service.stop().await;
    closed().await;
    std::fs::copy(&saved, &file).unwrap();

    let service = Service::ready(embedded(directory.path())).await;
    assert_eq!(service.rewind().await, None, "nobody knows");
    let knowing = |name: &str| v1::Subscribe {
        revision: lost.revision,
        state_hash: lost.state_hash.clone(),
        ..edge(name)
    };
    for name in ["one", "other"] {
        let mut subscriber = Subscriber::connect(&service, knowing(name)).await;
        let update = subscriber.take().await;
        assert_eq!((update.revision, update.full), (1, true));
    }
    let rewind = service.rewind().await.unwrap();
    assert_eq!((rewind.lost_revision, rewind.latest_revision), (2, 1));
    let metrics = get(service.admin, "/metrics").await;
    assert!(
        metrics.contains("anyport_config_store_rewinds_total 1"),
        "{metrics}"
    );
    // Also where the revision has come a second time, and the process has forgotten.
    service.apply(vec![app("new", 701)]).await.unwrap();
    service.apply(vec![app("new", 702)]).await.unwrap();
    service.stop().await;
    closed().await;
    let service = Service::ready(embedded(directory.path())).await;
    let mut subscriber = Subscriber::connect(&service, knowing("third")).await;
    let update = subscriber.take().await;
    assert_eq!((update.revision, update.full), (3, true));
    let rewind = service.rewind().await.unwrap();
    assert_eq!((rewind.lost_revision, rewind.latest_revision), (2, 3));
}

/// `anyport_config_update_bytes_total` of edges.
async fn sent_to_edges(service: &Service) -> u64 {
    let metrics = get(service.admin, "/metrics").await;
    let name = "anyport_config_update_bytes_total{role=\"edge\"} ";
    let line = metrics.lines().find_map(|line| line.strip_prefix(name));
    line.map_or(0, |count| count.parse().unwrap())
}

#[tokio::test]
async fn who_takes_it_is_sent_a_whole_state_compressed_and_others_as_it_is() {
    let (_directory, service) = fresh().await;
    service.apply(many(1_000)).await.unwrap();
    let mut plain = Subscriber::connect(&service, edge("plain")).await;
    let whole = plain.take().await;
    let long = sent_to_edges(&service).await;
    let mut takes = Subscriber::connect_compressed(&service, edge("takes")).await;
    assert_eq!(takes.take().await, whole);
    let short = sent_to_edges(&service).await - long;
    assert!(short < long / 5, "{short} of {long}");
    // A change that is short comes as it is, on the same stream.
    service.apply(vec![app("app-0", 9_000)]).await.unwrap();
    assert_eq!(plain.take().await, takes.take().await);
}

#[tokio::test]
async fn a_node_of_another_fleet_says_nothing_of_this_store_and_hides_nothing() {
    let (_directory, service) = fresh().await;
    let (_elsewhere, other) = fresh().await;
    for count in 1..=4 {
        other.apply(many(count)).await.unwrap();
    }
    service.apply(many(1)).await.unwrap();
    let theirs = Subscriber::connect(&other, edge("moved"))
        .await
        .take()
        .await;
    let ours = Subscriber::connect(&service, edge("stays"))
        .await
        .take()
        .await;
    assert_eq!([theirs.store.len(), ours.store.len()], [16, 16]);
    assert_ne!(theirs.store, ours.store);
    let comes = async |update: &v1::Update, revision| {
        let subscribe = v1::Subscribe {
            revision,
            state_hash: theirs.state_hash.clone(),
            store: update.store.clone(),
            ..edge("moved")
        };
        let mut subscriber = Subscriber::connect(&service, subscribe).await;
        let update = subscriber.take().await;
        assert_eq!((update.revision, update.full), (1, true));
        service.rewind().await.map(|rewind| rewind.lost_revision)
    };
    assert_eq!(comes(&theirs, 4).await, None);
    // Not even where there is a revision of that number.
    assert_eq!(comes(&theirs, 1).await, None);
    let lost = [(&ours, 3), (&v1::Update::default(), 2)];
    for (holds, revision) in lost {
        assert_eq!(comes(holds, revision).await, Some(revision));
    }
    // A name is for good.
    service.apply(many(2)).await.unwrap();
    let update = Subscriber::connect(&service, edge("stays"))
        .await
        .take()
        .await;
    assert_eq!((update.revision, update.store), (2, ours.store));
}

#[tokio::test]
async fn a_node_is_listed_with_what_it_applied_until_it_is_gone() {
    let (_directory, service) = fresh().await;
    service.apply(many(1)).await.unwrap();
    let mut watched = service
        .client()
        .watch_nodes(v1::WatchNodesRequest::default())
        .await
        .unwrap()
        .into_inner();
    // What it held before says nothing of what it rejected of that.
    let resuming = v1::Subscribe {
        revision: 1,
        state_hash: service.apply(many(1)).await.unwrap().state_hash,
        ..edge("e1")
    };
    let mut subscriber = Subscriber::connect(&service, resuming).await;
    let update = subscriber.next().await.unwrap();
    let unheard = service.nodes().await.remove(0);
    assert_eq!(
        (unheard.applied_revision, &*unheard.applied_hash),
        (0, &[][..])
    );
    let rejection = v1::Rejection {
        resource: Some(reference(v1::Kind::App, "app-0")),
        reason: "the kernel said no".to_owned(),
    };
    subscriber.ack(&update, vec![rejection.clone()]).await;
    let listed = eventually("its acknowledgement", || async {
        let nodes = service.nodes().await;
        nodes.into_iter().find(|node| node.applied_revision == 1)
    })
    .await;
    assert_eq!(
        (listed.name.as_str(), listed.region.as_str()),
        ("e1", "test")
    );
    assert_eq!(listed.applied_hash, update.state_hash);
    assert_eq!(listed.rejections, [rejection]);
    assert!(
        listed
            .replica
            .ends_with(&format!(":{}", service.address.port()))
    );

    // Whoever watches sees it come and go too.
    soon("the watcher sees what it applied", async {
        while !next(&mut watched)
            .await
            .iter()
            .any(|node| node.applied_revision == 1)
        {}
    })
    .await;
    drop(subscriber);
    soon("the watcher sees it go", async {
        while !next(&mut watched).await.is_empty() {}
    })
    .await;
    assert!(service.nodes().await.is_empty());
}

async fn next(watched: &mut tonic::Streaming<v1::WatchNodesResponse>) -> Vec<v1::NodeStatus> {
    watched.message().await.unwrap().expect("no end").nodes
}

#[tokio::test]
async fn what_balancers_and_edges_report_is_listed_and_nothing_else() {
    let (_directory, service) = fresh().await;
    let mut reporter = Subscriber::connect(&service, balancer("b1")).await;
    reporter.take().await;
    let pools = vec![v1::PoolHealth {
        pool: "game".to_owned(),
        state: v1::PoolState::Down.into(),
        ..Default::default()
    }];
    let report = v1::Report {
        pools: pools.clone(),
        ..Default::default()
    };
    reporter.say(Message::Report(report.clone())).await;
    eventually("the report", || async {
        let nodes = service.nodes().await;
        nodes.iter().any(|node| node.pools == pools).then_some(())
    })
    .await;
    let drained = v1::Report {
        drain: v1::DrainState::Drained.into(),
        ..Default::default()
    };
    let mut drains = Subscriber::connect(&service, edge("e2")).await;
    drains.take().await;
    drains.say(Message::Report(drained.clone())).await;
    eventually("the edge is drained", || async {
        let nodes = service.nodes().await;
        let drained = |node: &v1::NodeStatus| node.drain() == v1::DrainState::Drained;
        nodes.iter().any(drained).then_some(())
    })
    .await;
    for (who, said) in [(edge("e1"), report), (balancer("b2"), drained)] {
        let mut wrong = Subscriber::connect(&service, who).await;
        wrong.take().await;
        wrong.say(Message::Report(said)).await;
        let refused = wrong.next().await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
    }
}

#[tokio::test]
async fn a_subscriber_that_does_not_keep_to_the_protocol_is_told() {
    let (_directory, service) = fresh().await;
    for (first, field) in [
        (
            v1::Subscribe {
                role: 0,
                ..edge("e")
            },
            "subscribe.role",
        ),
        (
            v1::Subscribe {
                role: 9,
                ..edge("e")
            },
            "subscribe.role",
        ),
        (edge(""), "subscribe.name"),
        (edge("a/b"), "subscribe.name"),
        (
            v1::Subscribe {
                region: "x".repeat(129),
                ..edge("e")
            },
            "subscribe.region",
        ),
    ] {
        let mut subscriber = Subscriber::connect(&service, first).await;
        let refused = subscriber.next().await.unwrap_err();
        assert_eq!(violations(&refused)[0].0, field);
    }
    let mut liar = Subscriber::connect(&service, edge("liar")).await;
    let update = liar.next().await.unwrap();
    let wrong = v1::Update {
        revision: update.revision + 1,
        ..update
    };
    liar.ack(&wrong, Vec::new()).await;
    let refused = liar.next().await.unwrap_err();
    assert!(
        refused.message().starts_with("ack.revision: "),
        "{refused:?}"
    );
}

#[tokio::test]
async fn a_watcher_sees_the_state_and_each_change() {
    let (_directory, service) = fresh().await;
    service.apply(many(2)).await.unwrap();
    let request = v1::WatchRequest {
        kinds: vec![v1::Kind::App.into()],
    };
    let mut watched = service.client().watch(request).await.unwrap().into_inner();
    let first = soon("the state", watched.message()).await.unwrap().unwrap();
    assert!(first.full);
    assert_eq!((first.revision, first.upserts.len()), (1, 2));
    let gone = v1::DeleteRequest {
        resource: Some(reference(v1::Kind::App, "app-1")),
        ..Default::default()
    };
    service.client().delete(gone).await.unwrap();
    let second = soon("the change", watched.message())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        (second.full, second.revision, second.upserts.len()),
        (false, 2, 0)
    );
    assert_eq!(second.removals, [reference(v1::Kind::App, "app-1")]);
}

#[tokio::test]
async fn a_drain_ends_streams_with_a_hint_and_the_service_stops() {
    let (_directory, service) = fresh().await;
    let mut subscriber = Subscriber::connect(&service, edge("e1")).await;
    subscriber.take().await;
    let mut watched = service
        .client()
        .watch_nodes(v1::WatchNodesRequest::default())
        .await
        .unwrap()
        .into_inner();
    service.drain.begin();
    let told = subscriber.next().await.unwrap_err();
    assert_eq!(told.code(), Code::Unavailable);
    assert!(told.get_details_retry_info().is_some());
    let told = soon("the watcher's end", async {
        loop {
            match watched.message().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("ended without a word"),
                Err(status) => return status,
            }
        }
    })
    .await;
    assert_eq!(told.code(), Code::Unavailable);
    drop((subscriber, watched));
    service.stop().await;
}

#[tokio::test]
async fn a_call_ends_at_its_deadline() {
    let (_directory, service) = fresh().await;
    // Large enough to take longer than its deadline allows.
    let mut request = tonic::Request::new(v1::ApplyRequest {
        resources: many(20_000),
        ..Default::default()
    });
    request.set_timeout(Duration::from_millis(1));
    let late = soon("the deadline", service.client().apply(request))
        .await
        .unwrap_err();
    assert!(
        matches!(late.code(), Code::DeadlineExceeded | Code::Cancelled),
        "{late:?}"
    );
    // Done or not, what is there is whole.
    let (_, resources) = service.list().await;
    assert!(matches!(resources.len(), 0 | 20_001), "{}", resources.len());
}

#[tokio::test]
async fn metrics_tell_the_revision_the_nodes_and_how_long_a_change_takes() {
    let (_directory, service) = fresh().await;
    let mut subscriber = Subscriber::connect(&service, edge("e1")).await;
    subscriber.take().await;
    service.apply(many(1)).await.unwrap();
    subscriber.take().await;
    let text = eventually("the metrics", || async {
        let text = get(service.admin, "/metrics").await;
        text.contains("anyport_config_propagation_seconds_count 1")
            .then_some(text)
    })
    .await;
    for line in [
        r#"anyport_config_revision{service="config-service"} 1"#,
        r#"anyport_config_nodes{role="edge"} 1"#,
        r#"anyport_config_nodes{role="balancer"} 0"#,
        r#"anyport_config_writes_total{method="apply",result="committed"} 1"#,
        r#"anyport_config_updates_total{full="false",role="edge"} 1"#,
    ] {
        assert!(text.contains(line), "{line} is missing in\n{text}");
    }
}

async fn get(address: std::net::SocketAddr, path: &str) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.0\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    soon("an answer", stream.read_to_string(&mut answer))
        .await
        .unwrap();
    answer
}

#[tokio::test]
async fn what_was_answered_survives_a_kill() {
    let directory = tempfile::tempdir().unwrap();
    for round in 1..=3u16 {
        let mut program = Program::start(&embedded(directory.path()));
        let mut client = program.client().await;
        let before = client
            .list(v1::ListRequest::default())
            .await
            .unwrap()
            .into_inner();
        assert_eq!(before.revision, u64::from(round) - 1);
        let request = v1::ApplyRequest {
            resources: vec![
                prefix("198.51.100.0/24"),
                app(&format!("app-{round}"), round),
            ],
            ..Default::default()
        };
        let answer = tokio::time::timeout(PATIENCE, client.apply(request))
            .await
            .unwrap();
        assert_eq!(answer.unwrap().into_inner().revision, u64::from(round));
        program.kill();
    }
    let program = Program::start(&embedded(directory.path()));
    let mut client = program.client().await;
    let after = client
        .list(v1::ListRequest::default())
        .await
        .unwrap()
        .into_inner();
    assert_eq!((after.revision, after.resources.len()), (3, 4));
}

#[tokio::test]
async fn what_a_subscriber_says_first_is_small_and_what_it_says_then_need_not_be() {
    let (_directory, service) = fresh().await;
    let long = v1::Subscribe {
        region: "x".repeat(100_000),
        ..edge("e1")
    };
    let mut refused = Subscriber::connect(&service, long).await;
    let refused = refused.next().await.unwrap_err();
    assert_eq!(refused.code(), Code::OutOfRange, "{refused}");

    let mut speaker = Subscriber::connect(&service, balancer("b1")).await;
    speaker.take().await;
    let pool = v1::PoolHealth {
        pool: "x".repeat(1_000_000),
        ..Default::default()
    };
    let report = v1::Report {
        pools: vec![pool],
        ..Default::default()
    };
    speaker.say(Message::Report(report)).await;
    service
        .apply(vec![prefix("198.51.100.0/24")])
        .await
        .unwrap();
    speaker.take().await;
}

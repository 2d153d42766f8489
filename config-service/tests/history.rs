//! States as objects, and revisions held against a naive model of them.

#![allow(clippy::unwrap_used)]

mod support;

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    num::NonZeroU64,
    sync::{Arc, LazyLock},
    time::SystemTime,
};

use anyport_config_service::{
    admit::{
        ApplyRead, Change, Conditions, Intent, Outcome, WriteError, Writer, Written, read_apply,
    },
    state::{
        Keeper, Layout, Retention, StoreKeys,
        history::{self, Forgotten},
    },
    store::{Object, ObjectId, embedded::Embedded},
};
use anyport_model::{
    names::Revision,
    ports::PortRange,
    resource::{App, Resource, ResourceRef},
    state::Resources,
};
use anyport_proto::convert::read_resource;
use proptest::prelude::*;
use support::resources;

fn app(number: u8, port: u16) -> Resource {
    read_resource(resources::app(
        &format!("app-{number}"),
        1 + u16::from(number) * 100 + port,
    ))
    .unwrap()
}

fn prefix() -> Resource {
    read_resource(resources::prefix("198.51.100.0/24")).unwrap()
}

/// Of the same name, with another key each.
static CERTIFICATES: LazyLock<[Resource; 2]> = LazyLock::new(|| {
    ["mail", "mail"].map(|name| read_resource(resources::certificate(name)).unwrap())
});

/// Apps by number, each on one of some ports; with the prefix that they need, and
/// perhaps a certificate.
fn state() -> impl Strategy<Value = Resources> {
    let apps = prop::collection::btree_map(any::<u8>(), 0u16..3, 0..60);
    (apps, prop::option::of(0usize..2)).prop_map(|(apps, certificate)| {
        let apps = apps.into_iter().map(|(number, port)| app(number, port));
        let certificate = certificate.map(|index| CERTIFICATES[index].clone());
        let all = apps.chain([prefix()]).chain(certificate);
        all.map(|resource| (resource.reference(), resource))
            .collect()
    })
}

/// No keys, or one.
fn store_keys() -> impl Strategy<Value = StoreKeys> {
    static KEYS: LazyLock<StoreKeys> = LazyLock::new(|| {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "5".repeat(64)).unwrap();
        StoreKeys::read(file.path()).unwrap()
    });
    prop_oneof![Just(StoreKeys::default()), Just(KEYS.clone())]
}

fn changed(from: &Resources, to: &Resources) -> Vec<ResourceRef> {
    let all = from.keys().chain(to.keys());
    all.filter(|reference| from.get(reference) != to.get(reference))
        .cloned()
        .collect()
}

proptest! {
    #[test]
    fn a_state_comes_back_from_its_objects_whatever_way_led_to_it(states in prop::collection::vec(state(), 1..5), keys in store_keys()) {
        let mut stored: HashMap<ObjectId, Object> = HashMap::new();
        let (mut layout, mut resources) = (Layout::empty(), Resources::new());
        for next in states {
            let (written, objects) = layout.rewrite(&next, &changed(&resources, &next), &keys);
            let known: Vec<ObjectId> = layout.objects().collect();
            for object in objects {
                prop_assert!(!known.contains(&object.id()), "written again though unchanged");
                stored.insert(object.id(), object);
            }
            // From nothing, the same.
            let all: Vec<ResourceRef> = next.keys().cloned().collect();
            prop_assert_eq!(Layout::empty().rewrite(&next, &all, &keys).0, written.clone());

            let bytes = stored[&written.id()].bytes();
            let read = Layout::decode(bytes).unwrap();
            prop_assert_eq!(&read, &written);
            for (known_layout, known) in [(&layout, &resources), (&Layout::empty(), &Resources::new())] {
                let beyond = read.beyond(known_layout);
                let chunks: Vec<_> = beyond.chunks().iter().map(|id| stored[id].bytes().clone()).collect();
                prop_assert_eq!(&beyond.complete(known, &chunks, &keys).unwrap(), &next);
            }
            (layout, resources) = (written, next);
        }
    }

    #[test]
    fn different_states_have_different_hashes(one in state(), other in state(), keys in store_keys()) {
        let hash = |state: &Resources| {
            let all: Vec<ResourceRef> = state.keys().cloned().collect();
            Layout::empty().rewrite(state, &all, &keys).0.id()
        };
        prop_assert_eq!(one == other, hash(&one) == hash(&other));
    }

    #[test]
    fn no_bytes_make_reading_a_layout_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(layout) = Layout::decode(&bytes) {
            let beyond = layout.beyond(&Layout::empty());
            let _ = beyond.complete(&Resources::new(), &[&bytes[..]], &StoreKeys::default());
        }
    }
}

#[derive(Debug, Clone)]
enum Step {
    Apply {
        apps: BTreeMap<u8, u16>,
        prune: bool,
    },
    Delete(u8),
    Rollback(prop::sample::Index),
    /// What a replica knows is lost, and read again.
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    let apps = prop::collection::btree_map(0u8..12, 0u16..3, 0..5);
    prop_oneof![
        4 => (apps, any::<bool>()).prop_map(|(apps, prune)| Step::Apply { apps, prune }),
        2 => (0u8..12).prop_map(Step::Delete),
        2 => any::<prop::sample::Index>().prop_map(Step::Rollback),
        1 => Just(Step::Restart),
    ]
}

fn apply_intent(wanted: impl IntoIterator<Item = Resource>, prune: bool) -> Intent {
    let wire = wanted
        .into_iter()
        .map(|resource| anyport_proto::convert::write_resource(&resource));
    let request: ApplyRead = read_apply(wire.collect());
    Intent::Apply { request, prune }
}

async fn write(writer: &Writer, intent: Intent) -> Result<Written, WriteError> {
    let conditions = Conditions {
        allow_mass_deletion: true,
        ..Conditions::default()
    };
    writer.write(intent, conditions, SystemTime::now).await
}

/// What the store should hold: the state of every revision, in a plain list.
#[derive(Default)]
struct Naive(Vec<Resources>);

impl Naive {
    fn present(&self) -> Resources {
        self.0.last().cloned().unwrap_or_default()
    }

    /// A revision, unless it would be the same.
    fn write(&mut self, next: Resources) -> (u64, Outcome) {
        let outcome = if next == self.present() {
            Outcome::Unchanged
        } else {
            self.0.push(next);
            Outcome::Committed
        };
        (self.0.len() as u64, outcome)
    }
}

async fn held_against_the_model(steps: Vec<Step>) {
    let directory = tempfile::tempdir().unwrap();
    let mut keeper = Keeper::new(Arc::new(Embedded::open(directory.path()).unwrap()));
    let mut naive = Naive::default();
    for step in steps {
        let writer = Writer::new(keeper.clone());
        match step {
            Step::Apply { apps, prune } => {
                let wanted: Vec<Resource> = apps
                    .iter()
                    .map(|(n, port)| app(*n, *port))
                    .chain([prefix()])
                    .collect();
                let mut next = if prune {
                    Resources::new()
                } else {
                    naive.present()
                };
                next.extend(
                    wanted
                        .iter()
                        .map(|resource| (resource.reference(), resource.clone())),
                );
                let written = write(&writer, apply_intent(wanted, prune)).await.unwrap();
                assert_eq!((written.revision.0, written.outcome), naive.write(next));
            }
            Step::Delete(number) => {
                let reference = app(number, 0).reference();
                let mut next = naive.present();
                let was_there = next.remove(&reference).is_some();
                match write(&writer, Intent::Delete(reference)).await {
                    Ok(written) => {
                        assert!(was_there);
                        assert_eq!((written.revision.0, written.outcome), naive.write(next));
                    }
                    Err(WriteError::Refused(_)) => assert!(!was_there),
                    Err(error) => panic!("{error}"),
                }
            }
            Step::Rollback(index) => {
                let to = index.index(naive.0.len() + 1);
                let revision = Revision(to as u64);
                let next = to
                    .checked_sub(1)
                    .map(|at| naive.0[at].clone())
                    .unwrap_or_default();
                let resources = keeper
                    .at(revision)
                    .await
                    .unwrap()
                    .unwrap()
                    .resources
                    .clone();
                let written = write(
                    &writer,
                    Intent::Rollback {
                        revision,
                        resources,
                    },
                )
                .await
                .unwrap();
                assert_eq!((written.revision.0, written.outcome), naive.write(next));
            }
            Step::Restart => {
                let store = Arc::clone(keeper.store());
                keeper = Keeper::new(store);
                keeper.turn().await.unwrap().refresh().await.unwrap();
            }
        }
        let present = keeper.present().unwrap();
        assert_eq!(present.resources(), &naive.present());
    }
    // All of the history, read by someone who knows nothing.
    let reader = Keeper::new(Arc::clone(keeper.store()));
    for (index, wanted) in naive.0.iter().enumerate() {
        let state = reader
            .at(Revision(index as u64 + 1))
            .await
            .unwrap()
            .unwrap();
        assert_eq!(&state.resources, wanted, "revision {}", index + 1);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn revisions_are_what_a_plain_list_of_states_would_be(steps in prop::collection::vec(step(), 1..25)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(held_against_the_model(steps));
    }
}

fn keep(revisions: u64) -> Retention {
    Retention {
        revisions: NonZeroU64::new(revisions).unwrap(),
        time: None,
    }
}

#[tokio::test]
async fn what_is_too_old_is_forgotten_and_the_rest_can_still_be_brought_back() {
    let directory = tempfile::tempdir().unwrap();
    let keeper = Keeper::new(Arc::new(Embedded::open(directory.path()).unwrap()));
    let writer = Writer::new(keeper.clone());
    for port in 0..30u16 {
        let apps = (0..20).map(|n| app(n, if n == 7 { port } else { 0 }));
        write(&writer, apply_intent(apps.chain([prefix()]), false))
            .await
            .unwrap();
    }
    let gone = history::forget(&keeper, keep(10), SystemTime::now())
        .await
        .unwrap();
    // Of each of the 20: its layout, and the chunk that holds app 7.
    let wanted = Forgotten {
        oldest: Revision(21),
        objects: 40,
    };
    assert_eq!(gone, Some(wanted));

    let reader = Keeper::new(Arc::clone(keeper.store()));
    assert!(reader.at(Revision(20)).await.unwrap().is_none());
    for revision in 21..=30 {
        let state = reader.at(Revision(revision)).await.unwrap().unwrap();
        assert_eq!(state.resources.len(), 21);
    }
    let revision = Revision(21);
    let resources = reader
        .at(revision)
        .await
        .unwrap()
        .unwrap()
        .resources
        .clone();
    let back = write(
        &Writer::new(reader),
        Intent::Rollback {
            revision,
            resources,
        },
    )
    .await
    .unwrap();
    assert_eq!(back.revision, Revision(31));
    assert!(
        matches!(&back.changes[..], [Change::Updated { .. }]),
        "{:?}",
        back.changes
    );
}

#[tokio::test]
async fn a_state_that_outgrows_an_update_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let keeper = Keeper::new(Arc::new(Embedded::open(directory.path()).unwrap()));
    let writer = Writer::new(keeper.clone());
    let mut wire = resources::app("large", 1);
    if let Some(anyport_proto::v1::resource::Kind::App(app)) = &mut wire.kind {
        app.origin_direct = (0..1000)
            .map(|n| format!("tcp://[2001:db8:aaaa:bbbb:cccc::{n:x}]:7000"))
            .collect();
    }
    let Resource::App(large) = read_resource(wire).unwrap() else {
        panic!("an app was written");
    };
    let named = |n: u16| {
        let mut app = App::clone(&large);
        app.name = format!("app-{n}").parse().unwrap();
        app.ports = PortRange::single(n + 1).unwrap();
        Resource::App(Arc::new(app))
    };
    let half = |from: u16| {
        let all = (from..from + 900).map(named).chain([prefix()]);
        let resources = all
            .enumerate()
            .map(|(index, r)| (r.reference(), (index, r)));
        let request = ApplyRead {
            resources: resources.collect(),
            ..ApplyRead::default()
        };
        Intent::Apply {
            request,
            prune: false,
        }
    };
    assert_eq!(write(&writer, half(0)).await.unwrap().revision, Revision(1));
    let refused = write(&writer, half(900)).await.unwrap_err().to_string();
    assert!(
        refused.starts_with("resources: all resources together would take "),
        "{refused}"
    );
    assert_eq!(keeper.present().unwrap().revision(), Revision(1));
}

//! A store that went back and on again, as nobody of its followers saw.

use std::{sync::Arc, time::SystemTime};

use anyport_config_service::{
    admit::{Conditions, Intent, Writer, read_apply},
    state::Keeper,
};
use anyport_model::names::Revision;
use anyport_proto::v1;

use crate::{
    chance::Chance,
    disk::{Disk, Reach},
    gate::Gate,
};

fn replica(disk: &Arc<Disk>) -> Keeper {
    let troubled = Gate::open();
    troubled.set(false);
    Keeper::new(Arc::new(Reach {
        disk: Arc::clone(disk),
        chance: Chance::of(1),
        way: Gate::open(),
        troubled,
    }))
}

async fn declare(keeper: &Keeper, cidr: &str) {
    let kind = v1::resource::Kind::Prefix(v1::Prefix {
        cidr: cidr.to_owned(),
    });
    let intent = Intent::Apply {
        request: read_apply(vec![v1::Resource { kind: Some(kind) }]),
        prune: false,
    };
    let writer = Writer::new(keeper.clone());
    let written = writer.write(intent, Conditions::default(), SystemTime::now);
    written.await.unwrap();
}

/// What a number meant before is nothing that a subscriber may be told a difference from.
#[tokio::test(start_paused = true)]
async fn a_number_that_was_lost_means_what_it_means_now() {
    let disk = Arc::new(Disk::default());
    let follows = replica(&disk);
    declare(&follows, "198.51.100.0/24").await;
    declare(&follows, "203.0.113.0/24").await;
    let second = Revision(2);
    let lost = follows.at(second).await.unwrap().unwrap();
    // There is but one older revision.
    disk.go_back(&Chance::of(1));
    let writes = replica(&disk);
    declare(&writes, "2001:db8:51::/64").await;
    declare(&writes, "2001:db8:52::/64").await;
    let now = writes.at(second).await.unwrap().unwrap();
    assert_ne!(now.hash(), lost.hash());

    follows.turn().await.unwrap().refresh().await.unwrap();
    assert_eq!(follows.rewinds().borrow().count, 1);
    let told = follows.at(second).await.unwrap().unwrap();
    assert_eq!((told.hash(), &told.resources), (now.hash(), &now.resources));
}

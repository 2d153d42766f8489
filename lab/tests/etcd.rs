//! A control plane whose etcd has three members, and what it goes through: members that die, a
//! replica that is cut off, a database that is full, and one that is restored from an older copy.
//! All the while somebody writes and others follow: no write that was acknowledged is lost, and
//! nobody is given a state that is half of one.

#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use anyport_lab::cluster::{PATIENCE, eventually};
use anyport_lab::control_plane::{ControlPlane, Cut, Traffic};
use anyport_proto::v1;
use tonic::{Code, Status};
use tonic_types::StatusExt;

/// A replica answers within 6 s, whatever its store does, and then the other one is asked. The rest
/// is for a machine that has other things to do.
const STALL: Duration = Duration::from_secs(20);

/// Both replicas take a write each.
fn both_write(plane: &ControlPlane, traffic: &Traffic) {
    traffic.pause();
    for replica in [0, 1] {
        let n = 40_000 + u64::try_from(replica).unwrap();
        // It may be that etcd elects: then it says to ask again.
        eventually(PATIENCE, "the replica takes a write", || {
            match plane.client(replica).apply(n) {
                Err(status) => {
                    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
                    Err(status)
                }
                Ok(_) => Ok(()),
            }
        });
    }
    traffic.resume();
}

fn members_die(plane: &mut ControlPlane, which: impl Fn(&ControlPlane, usize) -> usize) {
    let traffic = Traffic::start(plane);
    for round in 0..3 {
        let member = which(plane, round);
        plane.etcd.kill9(member);
        traffic.goes_on();
        both_write(plane, &traffic);
        for replica in [0, 1] {
            plane.wait_until_ready(replica);
        }
        plane.etcd.restart(&[member]);
        traffic.goes_on();
    }
    let longest = traffic.all_was_well(plane);
    eprintln!("the longest write took {longest:?}");
    assert!(longest < STALL, "{longest:?}");
}

#[test]
fn members_die_one_after_the_other() {
    let mut plane = ControlPlane::start(None);
    members_die(&mut plane, |_, round| round);
}

#[test]
fn the_leader_dies_again_and_again() {
    let mut plane = ControlPlane::start(None);
    members_die(&mut plane, |plane, _| plane.etcd.leader());
}

/// The member that leads is cut off, and then one that does not, and nobody is told: who asks it
/// waits in vain.
fn members_are_cut_off(from: Cut) {
    let plane = ControlPlane::start(None);
    let traffic = Traffic::start(&plane);
    for follows in [0, 1] {
        let member = (plane.etcd.leader() + follows) % 3;
        plane.etcd.cut(member, from);
        traffic.goes_on();
        both_write(&plane, &traffic);
        for replica in [0, 1] {
            plane.wait_until_ready(replica);
        }
        plane.etcd.mend(member);
        traffic.goes_on();
    }
    let longest = traffic.all_was_well(&plane);
    eprintln!("the longest write took {longest:?}");
    assert!(longest < STALL, "{longest:?}");
}

#[test]
fn members_are_cut_off_from_everybody() {
    members_are_cut_off(Cut::Everybody);
}

#[test]
fn members_are_cut_off_from_the_others_and_still_talk_to_replicas() {
    members_are_cut_off(Cut::Members);
}

#[test]
fn without_a_majority_nothing_is_written_and_all_is_read_until_there_is_one() {
    let mut plane = ControlPlane::start(None);
    let traffic = Traffic::start(&plane);
    let leader = plane.etcd.leader();
    let members = [leader, (leader + 1) % 3];
    members
        .into_iter()
        .for_each(|member| plane.etcd.kill9(member));
    for replica in [0, 1] {
        is_cut_off(&plane, replica);
    }
    plane.etcd.restart(&members);
    for replica in [0, 1] {
        plane.wait_until_ready(replica);
    }
    traffic.goes_on();
    traffic.all_was_well(&plane);
}

/// As an operator does it whose authority comes to its end. Each change of the files is one that
/// all bear who have not seen it yet.
#[test]
fn an_authority_is_replaced_by_another_one_while_writes_and_watches_go_on() {
    let (mut plane, old) = ControlPlane::start_in_tls();
    assert!(plane.etcd.lets_in("config-service-1"));
    assert!(!plane.etcd.lets_in("writer"), "of the same authority");
    let traffic = Traffic::start(&plane);
    let new = plane.another_authority();
    let restart_members = |plane: &mut ControlPlane| {
        for member in 0..3 {
            plane.etcd.kill9(member);
            plane.etcd.restart(&[member]);
            traffic.goes_on();
        }
    };
    plane.trust(&[&old, &new]);
    // It reads its own certificate anew for each connection, but not whom it trusts.
    restart_members(&mut plane);
    let expires = |plane: &ControlPlane, replica| {
        let metrics = plane.metrics(replica);
        metrics.sum("anyport_identity_expires_timestamp_seconds", &[])
    };
    let before = [0, 1].map(|replica| expires(&plane, replica));
    plane.hand_out(&new);
    for replica in [0, 1] {
        eventually(PATIENCE, "the new certificate is in use", || {
            let now = expires(&plane, replica);
            (now > before[replica]).then_some(()).ok_or(now)
        });
    }
    traffic.goes_on();
    plane.trust(&[&new]);
    restart_members(&mut plane);
    for replica in [0, 1] {
        plane.wait_until_ready(replica);
    }
    both_write(&plane, &traffic);
    traffic.all_was_well(&plane);

    // Back to the old one, which etcd does not trust any more: the next connection is refused.
    let use_only = |authority| {
        plane.trust(&[authority]);
        plane.hand_out(authority);
    };
    let of_new = expires(&plane, 1);
    use_only(&old);
    eventually(PATIENCE, "the old certificate is in use", || {
        let now = expires(&plane, 1);
        (now < of_new).then_some(()).ok_or(now)
    });
    plane.cut(1);
    is_cut_off(&plane, 1);
    plane.mend(1);
    eventually(PATIENCE, "it says why", || match plane.readiness(1) {
        (false, why) if why.contains(NOT_TRUSTED) => Ok(()),
        (_, said) => Err(said),
    });
    use_only(&new);
    plane.wait_until_ready(1);
}

const NOT_TRUSTED: &str = "it does not accept the certificate of --tls-cert";

/// It says so, reads, and does not write.
fn is_cut_off(plane: &ControlPlane, replica: usize) {
    eventually(2 * PATIENCE, "it says that it is cut off", || {
        match plane.readiness(replica) {
            (false, why) if why.contains("store: the store is out of reach") => Ok(()),
            (_, said) => Err(said),
        }
    });
    let client = plane.client(replica);
    assert!(client.revision().unwrap() > 0, "it reads");
    let began = Instant::now();
    refused(client.apply(50_000), "the store is out of reach");
    let took = began.elapsed();
    assert!(took < STALL, "{took:?}");
}

#[track_caller]
fn refused(answer: Result<v1::ApplyResponse, Status>, why: &str) {
    let status = answer.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert!(status.message().contains(why), "{status:?}");
    assert!(status.get_details_retry_info().is_some(), "{status:?}");
}

fn one_replica_is_cut_off(compact: bool) {
    let plane = ControlPlane::start(None);
    let traffic = Traffic::start(&plane);
    plane.cut(1);
    is_cut_off(&plane, 1);
    let stood = traffic.seen(1).last().cloned().unwrap();
    traffic.goes_on_at(&[0]);
    assert!(plane.readiness(0).0, "the other one is as ready as before");
    if compact {
        plane.etcd.compact();
        traffic.goes_on_at(&[0]);
        plane.etcd.compact();
    }
    assert_eq!(traffic.seen(1).last(), Some(&stood), "nothing comes");
    plane.mend(1);
    plane.wait_until_ready(1);
    traffic.goes_on();
    both_write(&plane, &traffic);
    traffic.all_was_well(&plane);
}

#[test]
fn a_replica_is_cut_off() {
    one_replica_is_cut_off(false);
}

#[test]
fn a_replica_is_cut_off_while_etcd_forgets() {
    one_replica_is_cut_off(true);
}

#[test]
fn a_full_database_refuses_writes_with_what_to_do_and_takes_them_again_once_there_is_room() {
    let plane = ControlPlane::start(Some(24 << 20));
    let traffic = Traffic::start(&plane);
    traffic.pause();
    plane.etcd.fill();
    let client = plane.client(0);
    let before = client.revision().unwrap();
    for replica in [0, 1] {
        let client = plane.client(replica);
        refused(client.apply(50_000), "`etcdctl alarm disarm`");
        assert_eq!(client.revision().unwrap(), before, "it reads");
        eventually(PATIENCE, "it says so", || match plane.readiness(replica) {
            (false, why) if why.contains("reached its quota") => Ok(()),
            (_, said) => Err(said),
        });
    }
    // And goes on saying so, though it can read.
    let looked = Instant::now();
    while looked.elapsed() < Duration::from_secs(5) {
        let (ready, said) = plane.readiness(0);
        assert!(!ready, "{said}");
        std::thread::sleep(Duration::from_millis(100));
    }
    plane.etcd.make_room();
    for replica in [0, 1] {
        plane.wait_until_ready(replica);
    }
    traffic.resume();
    traffic.goes_on();
    traffic.all_was_well(&plane);
}

#[test]
fn a_store_that_is_restored_from_an_older_copy_counts_and_is_never_taken_in_silence() {
    let mut plane = ControlPlane::start(None);
    let traffic = Traffic::start(&plane);
    traffic.pause();
    let kept = traffic.answered().last().cloned().unwrap();
    let snapshot = plane.etcd.snapshot();
    traffic.resume();
    traffic.goes_on();
    traffic.pause();
    let lost = traffic.answered().last().cloned().unwrap();
    assert!(lost.revision > kept.revision);
    plane.etcd.restore(&snapshot);
    traffic.lost_after(kept.revision);
    for replica in [0, 1] {
        eventually(2 * PATIENCE, "the follower has what was restored", || {
            let latest = traffic.seen(replica).pop().unwrap();
            let has = (latest.revision, &latest.state_hash);
            let wanted = (kept.revision, &kept.state_hash);
            (has == wanted).then_some(()).ok_or(latest.revision)
        });
        plane.wait_until_ready(replica);
        let log = plane.log(replica);
        assert!(log.contains("the store went back"), "{log}");
        let rewinds = plane.metrics(replica);
        let rewinds = rewinds.value("anyport_config_store_rewinds_total", &[]);
        assert_eq!(rewinds, Some(1.0));
        let status = plane.anyport(replica, &["status"]);
        let said = format!("the store went back: revision {} is lost", lost.revision);
        assert!(status.contains(&said), "{status}");
    }
    traffic.resume();
    traffic.goes_on();
    traffic.all_was_well(&plane);
}

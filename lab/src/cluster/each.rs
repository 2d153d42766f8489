//! Scenarios that hold whatever the cluster is made of.

/// Makes a test of each scenario, a function of a [`Store`](crate::cluster::Store), for each of the
/// stores: `embedded::scenario` and `etcd::scenario`.
#[macro_export]
macro_rules! on_both_stores {
    ($($scenario:ident),+ $(,)?) => {
        mod embedded {
            $(#[test] fn $scenario() { super::$scenario($crate::cluster::Store::Embedded); })+
        }
        mod etcd {
            $(#[test] fn $scenario() { super::$scenario($crate::cluster::Store::Etcd); })+
        }
    };
}

/// Makes a test of each scenario, a function of a [`Steering`](crate::cluster::Steering), for each of
/// the ways to steer: `under_tproxy::scenario` and `under_sk_lookup::scenario`.
#[macro_export]
macro_rules! under_both_steerings {
    ($($scenario:ident),+ $(,)?) => {
        mod under_tproxy {
            $(#[test] fn $scenario() { super::$scenario($crate::cluster::Steering::Tproxy); })+
        }
        mod under_sk_lookup {
            $(#[test] fn $scenario() { super::$scenario($crate::cluster::Steering::SkLookup); })+
        }
    };
}

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

//! Seals private keys anew, where the store key is another one than that they were
//! stored with.
//!
//! The present state is written once more, as a revision of its own in which nothing
//! else changes. That is done at the start of a replica, and where the store went
//! back: so replicas that were given different keys write once each, and not one
//! after the other without end.

use std::{convert::Infallible, time::SystemTime};

use crate::{
    admit::{Conditions, Intent, Refusal, WriteError, Writer},
    state::{Keeper, Snapshot},
    store::Author,
    trouble::Trouble,
};

/// Who does it, in the history.
const AUTHOR: &str = "config-service";

/// Has all private keys of the present state sealed with the first store key.
pub async fn reseal(keeper: &Keeper, writer: &Writer) -> Infallible {
    let mut rewinds = keeper.own_rewinds();
    loop {
        until_sealed(keeper, writer).await;
        // Cannot fail: the sender is held by the argument.
        let _ = rewinds.changed().await;
    }
}

async fn until_sealed(keeper: &Keeper, writer: &Writer) {
    let mut trouble = Trouble::new("sealing private keys anew");
    let mut states = keeper.subscribe();
    loop {
        // While a revision is tried, the one that all others have is needed as it is.
        let present = states.latest().filter(|state| state.rollout().is_none());
        let Some(present) = present else {
            states.changed().await;
            continue;
        };
        match seal(keeper, writer, &present).await {
            Ok(()) => return trouble.over(),
            // It has begun meanwhile.
            Err(WriteError::Refused(Refusal::OnTrial { .. })) => {}
            Err(error @ (WriteError::Store(_) | WriteError::Contended)) => {
                let pause = trouble.again(&error, keeper.random());
                tokio::time::sleep(pause).await;
            }
            Err(error) => {
                // Nothing is to be gained from a second try at the same state.
                tracing::error!(%error, "private keys stay sealed as they are until the next revision");
                states.changed().await;
            }
        }
    }
}

async fn seal(keeper: &Keeper, writer: &Writer, present: &Snapshot) -> Result<(), WriteError> {
    let Some(key) = keeper.seals_anew(present.state()).await? else {
        return Ok(());
    };
    let conditions = Conditions {
        author: Author {
            name: AUTHOR.to_owned(),
            ..Author::default()
        },
        message: format!("private keys are sealed anew, with the store key {key}"),
        ..Conditions::default()
    };
    let written = writer.write(Intent::Reseal, conditions, SystemTime::now);
    let written = written.await?;
    // Where another replica was first, there was nothing to do.
    tracing::info!(
        revision = written.revision.0,
        outcome = written.outcome.label(),
        key,
        "private keys are sealed anew"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::{sync::Arc, time::Duration};

    use anyport_model::{names::Revision, rollout::Canary};
    use anyport_proto::v1;

    use super::*;
    use crate::{
        admit::{Written, read_apply},
        state::StoreKeys,
        store::{Store, embedded::Embedded},
    };

    const PATIENCE: Duration = Duration::from_secs(60);

    /// A replica that was given these keys.
    struct Replica {
        keeper: Keeper,
        writer: Writer,
    }

    impl Replica {
        async fn of(store: &Arc<dyn Store>, keys: &str) -> Self {
            let keys = StoreKeys::parse(keys).unwrap();
            let keeper = Keeper::sealing(Arc::clone(store), keys);
            let turn = keeper.turn().await.unwrap();
            turn.refresh().await.unwrap();
            drop(turn);
            let writer = Writer::new(keeper.clone());
            Self { keeper, writer }
        }

        async fn until_sealed(&self) {
            let sealed = until_sealed(&self.keeper, &self.writer);
            tokio::time::timeout(PATIENCE, sealed).await.unwrap();
        }

        async fn write(&self, intent: Intent, canary: Option<Canary>) -> Written {
            let conditions = Conditions {
                canary,
                ..Conditions::default()
            };
            let written = self.writer.write(intent, conditions, SystemTime::now);
            written.await.unwrap()
        }

        fn revision(&self) -> u64 {
            self.keeper.present().unwrap().revision().0
        }
    }

    fn certificate(name: &str) -> Intent {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
        let kind = v1::resource::Kind::Certificate(v1::Certificate {
            name: name.to_owned(),
            cert: params.self_signed(&key).unwrap().pem(),
            key: key.serialize_pem(),
        });
        Intent::Apply {
            request: read_apply(vec![v1::Resource { kind: Some(kind) }]),
            prune: false,
        }
    }

    fn key(digit: char) -> String {
        digit.to_string().repeat(64)
    }

    fn store() -> (tempfile::TempDir, Arc<dyn Store>) {
        let directory = tempfile::tempdir().unwrap();
        let store = Embedded::open(directory.path()).unwrap();
        (directory, Arc::new(store))
    }

    #[tokio::test]
    async fn replicas_of_one_file_write_once_together_and_those_of_two_once_each() {
        let (_directory, store) = store();
        let (one, two) = (key('1'), key('2'));
        let old = Replica::of(&store, &one).await;
        for name in ["a", "b", "c"] {
            old.write(certificate(name), None).await;
        }
        old.until_sealed().await;
        assert_eq!(old.revision(), 3, "nothing is to be done");

        let new = format!("{two}\n{one}");
        let (a, b) = (
            Replica::of(&store, &new).await,
            Replica::of(&store, &new).await,
        );
        tokio::join!(a.until_sealed(), b.until_sealed());
        let c = Replica::of(&store, &format!("{one}\n{two}")).await;
        assert_eq!(c.revision(), 4);
        // It was restarted with the file of before.
        c.until_sealed().await;
        assert_eq!(c.revision(), 5);
        let d = Replica::of(&store, &new).await;
        d.until_sealed().await;
        assert_eq!(d.revision(), 6);

        let record = store.record(Revision(6)).await.unwrap().unwrap();
        let key = StoreKeys::parse(&two).unwrap().first().unwrap();
        let message = format!("private keys are sealed anew, with the store key {key}");
        assert_eq!((&*record.author.name, record.message), (AUTHOR, message));
        // Without the other key, all is there as it was.
        let alone = Replica::of(&store, &two).await;
        let [before, after] =
            [&d, &alone].map(|replica| replica.keeper.present().unwrap().resources().clone());
        assert_eq!((after.len(), after), (3, before));
        let lost = alone.keeper.at(Revision(3)).await.unwrap_err().to_string();
        let missing = StoreKeys::parse(&one).unwrap().first().unwrap();
        for words in ["revision 3", "private key of certificate ", &missing, &key] {
            assert!(lost.contains(words), "{words}: {lost}");
        }
    }

    #[tokio::test]
    async fn what_some_edges_try_is_sealed_anew_once_it_is_for_all() {
        let (_directory, store) = store();
        let (one, two) = (key('1'), key('2'));
        let old = Replica::of(&store, &one).await;
        old.write(certificate("a"), None).await;
        let canary = Canary {
            edges: ["fra1".parse().unwrap()].into(),
            promote_after: None,
        };
        old.write(certificate("b"), Some(canary)).await;
        let new = Replica::of(&store, &format!("{two}\n{one}")).await;
        let sealed = tokio::spawn({
            let (keeper, writer) = (new.keeper.clone(), new.writer.clone());
            async move { until_sealed(&keeper, &writer).await }
        });
        new.write(Intent::Promote(None), None).await;
        tokio::time::timeout(PATIENCE, sealed)
            .await
            .unwrap()
            .unwrap();
        assert_eq!(new.revision(), 4);
        Replica::of(&store, &two).await;
    }
}

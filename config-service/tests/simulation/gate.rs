//! A way that is open or shut.

use anyport_config_service::state::Latest;

/// Clones share it. Those who wait are woken in turn.
#[derive(Debug, Clone)]
pub struct Gate(Latest<bool>);

impl Gate {
    pub fn open() -> Self {
        Self(Latest::new(true))
    }

    pub fn is_open(&self) -> bool {
        self.0.get()
    }

    pub fn set(&self, open: bool) {
        self.0.replace(open);
    }

    /// Waits until it is so.
    pub async fn becomes(&self, open: bool) {
        let mut news = self.0.news();
        while news.latest() != open {
            news.changed().await;
        }
    }
}

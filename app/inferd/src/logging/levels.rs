//! Which lines are logged, and how that is changed while the daemon runs.

use inferd_api::{Directives, LogControl, LogState};
use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::{filter::Targets, registry::Registry, reload};

/// Changes of the device are logged whatever the level is: who asked, for what, and what came of it.
const AUDIT: &str = "audit";

/// What the directives let through.
pub fn filter(of: &Directives) -> Targets {
    Targets::new()
        .with_default(of.level())
        .with_targets(of.targets().map(|(target, level)| (target.to_owned(), level)))
        .with_target(AUDIT, LevelFilter::INFO)
}

/// The levels of this process.
#[derive(Clone)]
pub struct Levels(Arc<Shared>);

struct Shared {
    filter: reload::Handle<Targets, Registry>,
    lost: Arc<AtomicU64>,
    state: Mutex<State>,
}

struct State {
    configured: Directives,
    now: Directives,
    until: Option<Instant>,
    /// Counted up by every change: a revert that comes too late finds another number.
    change: u64,
}

impl Levels {
    /// What is configured holds; `lost` counts dropped lines.
    pub fn new(
        filter: reload::Handle<Targets, Registry>,
        configured: Directives,
        lost: Arc<AtomicU64>,
    ) -> Self {
        let state = State { now: configured.clone(), configured, until: None, change: 0 };
        Self(Arc::new(Shared { filter, lost, state: Mutex::new(state) }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change under the lock is one assignment after another: a panic leaves nothing half done.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What holds from now on; gives the number of the change.
    fn put(&self, wanted: &Directives, lasts: Option<Duration>) -> Result<u64, String> {
        let mut state = self.lock();
        self.0.filter.reload(filter(wanted)).map_err(|e| format!("the level cannot be changed: {e}"))?;
        state.now = wanted.clone();
        state.until = lasts.map(|d| Instant::now() + d);
        state.change += 1;
        Ok(state.change)
    }

    /// Goes back to what is configured, unless something else was asked for since `change`.
    fn revert(&self, change: u64) {
        let configured = {
            let state = self.lock();
            if state.change != change {
                return;
            }
            state.configured.clone()
        };
        match self.put(&configured, None) {
            Ok(_) => tracing::warn!(level = %configured, "the log level is again what is configured"),
            Err(why) => tracing::error!("{why}"),
        }
    }
}

impl LogControl for Levels {
    fn state(&self) -> LogState {
        let state = self.lock();
        LogState {
            level: state.now.to_string(),
            configured: state.configured.to_string(),
            left: state.until.map(|t| t.saturating_duration_since(Instant::now())),
            lines_dropped: self.0.lost.load(Relaxed),
        }
    }

    fn set(&self, wanted: &Directives, lasts: Option<Duration>) -> Result<(), String> {
        let change = self.put(wanted, lasts)?;
        // As a warning, so that it is seen at every level but `error`.
        match lasts {
            Some(d) => {
                tracing::warn!(level = %wanted, for_s = d.as_secs(), "the log level was changed for a time")
            }
            None => tracing::warn!(level = %wanted, "the log level was changed"),
        }
        if let Some(lasts) = lasts {
            let levels = self.clone();
            tokio::spawn(async move {
                tokio::time::sleep(lasts).await;
                levels.revert(change);
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use tracing_subscriber::{fmt::MakeWriter, prelude::*};

    #[derive(Clone, Default)]
    struct Page(Arc<Mutex<Vec<u8>>>);

    impl Write for Page {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    impl MakeWriter<'_> for Page {
        type Writer = Self;
        fn make_writer(&self) -> Self {
            self.clone()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_level_holds_for_its_time_and_a_newer_one_is_not_undone() {
        let (layer, handle) = reload::Layer::new(filter(&"info".parse().unwrap()));
        let levels = Levels::new(handle, "info".parse().unwrap(), Arc::default());
        let page = Page::default();
        let layers = tracing_subscriber::fmt::layer().with_writer(page.clone()).with_ansi(false);
        let subscriber = tracing_subscriber::registry().with(layer).with(layers);
        let _set = tracing::subscriber::set_default(subscriber);
        let say = |what: &str| {
            tracing::debug!(target: "inferd_hosts::ring", "{what} hosts");
            tracing::debug!(target: "inferd_api", "{what} api");
        };
        let minute = Some(Duration::from_secs(60));
        say("before");
        levels.set(&"info,inferd_hosts=debug".parse().unwrap(), minute).unwrap();
        say("during");
        assert_eq!(levels.state().level, "info,inferd_hosts=debug");
        tokio::time::sleep(Duration::from_secs(61)).await;
        say("after");
        assert_eq!(levels.state().level, "info");
        levels.set(&"debug".parse().unwrap(), minute).unwrap();
        tokio::time::sleep(Duration::from_secs(30)).await;
        levels.set(&"warn".parse().unwrap(), None).unwrap();
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(levels.state().level, "warn", "an older change undoes no newer one");
        tracing::info!(target: AUDIT, "who did what");
        tracing::info!(target: "inferd", "something");
        let text = String::from_utf8(page.0.lock().unwrap().clone()).unwrap();
        for (words, shown) in [
            ("before hosts", false),
            ("during hosts", true),
            ("during api", false),
            ("after hosts", false),
            ("again what is configured", true),
            ("who did what", true),
            ("something", false),
        ] {
            assert_eq!(text.contains(words), shown, "{words}: {text}");
        }
    }
}

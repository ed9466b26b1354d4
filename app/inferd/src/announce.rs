//! What the device says of itself on its LAN, kept up to date while it runs.

use crate::config::{Config, Enabled};
use crate::updates;
use inferd_announce::{Announcer, Choice, Properties, Wanted, interfaces::reachable};
use inferd_api::{Announced, App, Listening, fitness};
use std::{net::SocketAddr, sync::Arc, time::Duration};
use tokio::{sync::oneshot, task::JoinHandle, time::MissedTickBehavior};
use tracing::warn;

/// How often it is looked at whether something has changed.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Announces until the first of the two is dropped; the second is done when everybody was told goodbye.
pub fn start(app: &Arc<App>, config: &Config) -> (oneshot::Sender<()>, JoinHandle<()>) {
    let (tell, mut told) = oneshot::channel();
    let (app, settings, board) = (Arc::clone(app), config.mdns.clone(), updates::board(&config.updates));
    let task = async move {
        if settings.enabled == Enabled::Off {
            return;
        }
        let mut announcer: Option<Announcer> = None;
        let mut every = tokio::time::interval(LOOK_EVERY);
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = &mut told => break,
                _ = every.tick() => {}
            }
            let found = door(&app.listening.load(), app.tls.load().identity.is_some(), settings.enabled);
            let Some(door) = found else {
                announcer.iter().for_each(|announcer| announcer.announce(None));
                app.announced.store(None);
                continue;
            };
            let announcer = match &announcer {
                Some(there) => there,
                None => match Announcer::start() {
                    Ok(new) => announcer.insert(new),
                    Err(e) => {
                        warn!("not announced on the LAN: there is no thread for it: {e}");
                        let error = Some(format!("there is no thread for it: {e}"));
                        return app
                            .announced
                            .store(Some(Arc::new(Announced { error, ..Announced::default() })));
                    }
                },
            };
            let health = fitness(&app);
            let choice = Choice { names: settings.interfaces.clone(), listens: door.listens.clone() };
            announcer.announce(Some((wanted(&app, settings.name.as_deref(), &board, health, &door), choice)));
            let view = announcer.view();
            app.announced.store(Some(Arc::new(Announced {
                health: view.name.is_some().then_some(health),
                name: view.name,
                host: view.host,
                port: view.port,
                interfaces: view.interfaces,
                conflicts: view.conflicts,
                error: view.problem,
            })));
        }
        // It takes a moment: a goodbye is said twice.
        let _ = tokio::task::spawn_blocking(move || drop(announcer)).await;
    };
    (tell, tokio::spawn(task))
}

/// Where others are sent to.
#[derive(Debug, PartialEq, Eq)]
struct Door {
    port: u16,
    tls: bool,
    /// The listeners of that port.
    listens: Vec<SocketAddr>,
}

/// The first listener that other machines reach, without TLS where there is one. `On` takes one that only this machine reaches, too.
fn door(listening: &Listening, has_certificate: bool, enabled: Enabled) -> Option<Door> {
    let secure: &[SocketAddr] = if has_certificate { &listening.secure } else { &[] };
    let all = [(&listening.plain[..], false), (secure, true)];
    let first = |reach: bool| {
        all.iter().find_map(|(listens, tls)| {
            let at = listens.iter().find(|at| !reach || reachable(&[**at]))?;
            let same = listens.iter().filter(|other| other.port() == at.port());
            Some(Door { port: at.port(), tls: *tls, listens: same.copied().collect() })
        })
    };
    first(true).or_else(|| first(false).filter(|_| enabled == Enabled::On))
}

fn wanted(app: &App, name: Option<&str>, board: &str, health: &str, door: &Door) -> Wanted {
    let who = app.identity.load();
    let host = who.hostname.clone().unwrap_or_default();
    let pairs = [
        Some(("health", health)),
        door.tls.then_some(("tls", "1")),
        Some(("path", "/healthz")),
        Some(("version", env!("CARGO_PKG_VERSION"))),
        (!board.is_empty()).then_some(("board", board)),
        who.id.as_deref().map(|id| ("id", id)),
    ];
    Wanted {
        name: name.map_or_else(|| host.clone(), str::to_owned),
        host,
        port: door.port,
        properties: Properties::of(pairs.into_iter().flatten()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listening(plain: &[&str], secure: &[&str]) -> Listening {
        let at = |all: &[&str]| all.iter().map(|at| at.parse().unwrap()).collect();
        Listening { plain: at(plain), secure: at(secure), unbound: Vec::new() }
    }

    #[test]
    fn others_are_sent_where_they_can_go_and_without_tls_if_they_may() {
        let port = |listening: &Listening, certificate, enabled| {
            door(listening, certificate, enabled).map(|door| (door.port, door.tls))
        };
        let open = listening(&["127.0.0.1:9001", "0.0.0.0:9000"], &["0.0.0.0:9443"]);
        assert_eq!(port(&open, true, Enabled::Auto), Some((9000, false)));
        let secure = listening(&["127.0.0.1:9000"], &["[::]:9443"]);
        assert_eq!(port(&secure, true, Enabled::Auto), Some((9443, true)));
        assert_eq!(port(&secure, false, Enabled::Auto), None, "TLS needs a certificate");
        assert_eq!(port(&secure, false, Enabled::On), Some((9000, false)), "who says so means it");
        let closed = listening(&["127.0.0.1:9000", "[::1]:9000"], &[]);
        assert_eq!(port(&closed, false, Enabled::Auto), None);
        assert_eq!(door(&closed, false, Enabled::On).unwrap().listens, closed.plain);
        assert_eq!(port(&listening(&[], &[]), false, Enabled::On), None);
    }
}

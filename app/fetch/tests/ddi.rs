//! A hawkBit server that keeps the state of one action, and the device that answers it.
#![allow(clippy::unwrap_used)]

mod common;

use common::*;
use inferd_fetch::ddi::{ConfigError, Ddi, DdiConfig, Security};
use inferd_fetch::{About, Limits, Standing, Way};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What the server offers; tests change it between polls.
#[derive(Default)]
struct Fleet {
    deployment: Option<Value>,
    cancel: Option<Value>,
    config: bool,
    confirmation: bool,
    sleep: Option<&'static str>,
    /// Statuses that the next feedbacks get instead of 200.
    feedback: Vec<u16>,
    /// Instead of everything.
    broken: Option<Answer>,
    /// Bytes of the artifact, and the chunk's beginning after which downloads are cut.
    content: Vec<u8>,
    cut: Option<usize>,
    stall: bool,
}

struct Yard {
    fleet: Arc<Mutex<Fleet>>,
    server: Server,
    device: Double,
    folder: tempfile::TempDir,
    clock: Arc<Fast>,
    ddi: Ddi<Double>,
}

const BASE: &str = "/DEFAULT/controller/v1/dev-1";

fn links(fleet: &Fleet, host: &str) -> Value {
    let mut links = json!({});
    let href = |path: String| json!({ "href": format!("http://{host}{BASE}/{path}") });
    if let Some(document) = &fleet.deployment {
        let id = document["id"].as_str().unwrap();
        // The real server adds a query that must not get into the feedback's address.
        links["deploymentBase"] = href(format!("deploymentBase/{id}?c=-2127183556"));
    }
    if let Some(document) = &fleet.cancel {
        links["cancelAction"] = href(format!("cancelAction/{}", document["id"].as_str().unwrap()));
    }
    if fleet.config {
        links["configData"] = href("configData".into());
    }
    if fleet.confirmation {
        links["confirmationBase"] = href("confirmationBase/9".into());
    }
    links
}

fn answer(fleet: &Mutex<Fleet>, asked: &Asked) -> Answer {
    let mut fleet = fleet.lock().unwrap();
    let path = asked.path.split('?').next().unwrap().to_owned();
    if let Some(broken) = &fleet.broken {
        return broken.clone();
    }
    if path == "/artifact.imb" {
        if fleet.stall {
            return Answer { silent: true, ..Answer::default() };
        }
        let good = file(asked, &fleet.content, "\"a\"");
        return match fleet.cut {
            Some(cut) => good.cut(cut),
            None => good,
        };
    }
    if asked.header("authorization") != Some("TargetToken secret") {
        return Answer::new(401, "");
    }
    let rest = path.strip_prefix(BASE).unwrap_or("?");
    match (asked.method.as_str(), rest) {
        ("GET", "") => {
            let sleep = fleet.sleep.unwrap_or("00:05:00");
            let links = links(&fleet, asked.header("host").unwrap());
            Answer::json(&json!({ "config": { "polling": { "sleep": sleep } }, "_links": links }))
        }
        ("PUT", "/configData") => {
            fleet.config = false;
            Answer::new(200, "")
        }
        ("GET", "/confirmationBase/9") => Answer::json(&json!({ "id": "9", "confirmation": {} })),
        ("POST", "/confirmationBase/9/feedback") => {
            fleet.confirmation = false;
            Answer::new(200, "")
        }
        ("GET", rest) if rest.starts_with("/deploymentBase/") => {
            Answer::json(fleet.deployment.as_ref().unwrap())
        }
        ("GET", rest) if rest.starts_with("/cancelAction/") => Answer::json(fleet.cancel.as_ref().unwrap()),
        ("POST", rest) if rest.ends_with("/feedback") => {
            let status = if fleet.feedback.is_empty() { 200 } else { fleet.feedback.remove(0) };
            if status == 200 && asked.json()["status"]["execution"] == "closed" {
                if rest.starts_with("/cancelAction/") {
                    fleet.cancel = None;
                }
                fleet.deployment = None;
            }
            Answer::new(status, "")
        }
        _ => Answer::new(404, ""),
    }
}

fn config(server: &Server, folder: &Path) -> DdiConfig {
    DdiConfig {
        server: server.url(""),
        tenant: "DEFAULT".into(),
        controller: "dev-1".into(),
        security: Security::TargetToken("secret".into()),
        memory: folder.join("hawkbit.json"),
        confirm: false,
        limits: Limits { tries: 2, silence: Duration::from_secs(60), ..Limits::default() },
    }
}

impl Yard {
    async fn new() -> Self {
        Self::with(|_| {}).await
    }

    async fn with(change: impl FnOnce(&mut DdiConfig)) -> Self {
        let fleet: Arc<Mutex<Fleet>> = Arc::default();
        let seen = fleet.clone();
        let server = Server::new(move |asked| answer(&seen, asked)).await;
        let folder = tempfile::tempdir().unwrap();
        let (device, clock) = (Double::default(), Fast::new());
        let mut config = config(&server, folder.path());
        change(&mut config);
        let ddi = Ddi::new(config, Arc::new(device.clone()), clock.clone()).unwrap();
        Self { fleet, server, device, folder, clock, ddi }
    }

    /// The power was cut: what is not on the disk is gone.
    fn restarted(self) -> Self {
        let config = config(&self.server, self.folder.path());
        let ddi = Ddi::new(config, Arc::new(self.device.clone()), self.clock.clone()).unwrap();
        Self { ddi, ..self }
    }

    fn fleet(&self) -> std::sync::MutexGuard<'_, Fleet> {
        self.fleet.lock().unwrap()
    }

    fn offer(&self, id: &str, made: &Made, download: &str, update: &str, window: Option<&str>) {
        let mut fleet = self.fleet();
        fleet.content = made.bytes.to_vec();
        let artifact = json!({
            "filename": "m.imb", "size": made.total(), "hashes": { "sha256": made.sha256(), "md5": "x", "sha1": "y" },
            "_links": { "download-http": { "href": self.server.url("/artifact.imb") } },
        });
        let chunk = json!({ "part": "os", "version": "1", "name": "m", "artifacts": [artifact] });
        let mut plan = json!({ "download": download, "update": update, "chunks": [chunk] });
        if let Some(window) = window {
            plan["maintenanceWindow"] = json!(window);
        }
        fleet.deployment = Some(json!({ "id": id, "deployment": plan }));
    }

    fn judged(&self, made: &Made, standing: Standing) {
        self.device.shelf().standings.insert(made.id(), standing);
    }

    /// Every feedback the server was sent, as `resource: execution finished first-detail`.
    fn told(&self) -> Vec<String> {
        self.server
            .asked()
            .iter()
            .filter(|asked| asked.method == "POST" && asked.path.ends_with("/feedback"))
            .map(|asked| {
                let resource =
                    asked.path.strip_prefix(BASE).unwrap().trim_end_matches("/feedback").to_owned();
                let status = &asked.json()["status"];
                let (execution, finished) =
                    (status["execution"].as_str(), status["result"]["finished"].as_str());
                format!("{resource} {} {}", execution.unwrap(), finished.unwrap())
            })
            .collect()
    }

    fn details(&self) -> Vec<String> {
        let asked = self.server.asked();
        let last = asked.iter().rfind(|asked| asked.path.ends_with("/feedback")).unwrap().json();
        last["status"]["details"].as_array().unwrap().iter().map(|d| d.as_str().unwrap().to_owned()).collect()
    }

    fn downloads(&self) -> usize {
        self.server.asked().iter().filter(|asked| asked.path == "/artifact.imb").count()
    }
}

#[tokio::test]
async fn an_update_goes_from_offer_to_success() {
    let mut yard = Yard::new().await;
    let made = usual(1);
    yard.offer("7", &made, "forced", "forced", None);
    yard.ddi.poll().await;
    assert!(yard.device.has(&made));
    assert_eq!(yard.device.shelf().finished, [(Way::Hawkbit, made.id())]);
    yard.ddi.poll().await;
    yard.judged(&made, Standing::Committed);
    yard.ddi.poll().await;
    assert_eq!(
        yard.told(),
        [
            "/deploymentBase/7 download none",
            "/deploymentBase/7 downloaded none",
            "/deploymentBase/7 proceeding none",
            "/deploymentBase/7 closed success",
        ]
    );
    assert_eq!(yard.details(), [format!("committed: bundle {}", made.id())]);
    for _ in 0..3 {
        yard.ddi.poll().await;
    }
    assert_eq!(yard.told().len(), 4);
    assert_eq!(yard.device.shelf().opened, 1);
}

#[tokio::test]
async fn feedback_has_the_form_the_server_reads() {
    let mut yard = Yard::new().await;
    yard.offer("7", &usual(1), "forced", "forced", None);
    yard.ddi.poll().await;
    let first = yard.server.asked().into_iter().find(|asked| asked.method == "POST").unwrap();
    assert_eq!(first.path, format!("{BASE}/deploymentBase/7/feedback"));
    assert_eq!(first.header("content-type"), Some("application/json"));
    let status = json!({
        "execution": "download", "result": { "finished": "none" }, "details": ["fetching the bundle"],
    });
    assert_eq!(first.json(), json!({ "id": "7", "status": status }));
}

#[tokio::test]
async fn a_refusal_and_a_return_close_the_action_with_our_verdict() {
    for standing in [
        Standing::Refused(refused("golden-mismatch", About::Bundle)),
        Standing::Returned(refused("probation-errors", About::Bundle)),
    ] {
        let mut yard = Yard::new().await;
        let made = usual(1);
        yard.offer("7", &made, "attempt", "attempt", Some("available"));
        yard.ddi.poll().await;
        yard.judged(&made, standing.clone());
        yard.ddi.poll().await;
        assert_eq!(yard.told().last().unwrap(), "/deploymentBase/7 closed failure");
        let (Standing::Refused(why) | Standing::Returned(why)) = standing else { unreachable!() };
        assert_eq!(yard.details()[..2], [why.sentence.clone(), format!("code: {}", why.code)]);
    }
}

#[tokio::test]
async fn a_gate_that_refuses_the_prefix_closes_the_action_at_once() {
    let mut yard = Yard::new().await;
    yard.offer("7", &usual(1), "forced", "forced", None);
    yard.device.shelf().refuse_begin = Some(refused("below-floor", About::Bundle));
    yard.ddi.poll().await;
    assert_eq!(yard.told(), ["/deploymentBase/7 download none", "/deploymentBase/7 closed failure"]);
    assert_eq!(yard.details(), ["refused: below-floor", "code: below-floor"]);
    assert_eq!(yard.downloads(), 1);
}

#[tokio::test]
async fn download_only_stores_and_waits_until_the_update_is_allowed() {
    let mut yard = Yard::new().await;
    let made = usual(1);
    yard.offer("7", &made, "forced", "skip", None);
    for _ in 0..3 {
        yard.ddi.poll().await;
    }
    assert!(yard.device.shelf().finished.is_empty());
    let before = yard.downloads();
    // The power is cut while it waits.
    let mut yard = yard.restarted();
    yard.ddi.poll().await;
    assert_eq!(yard.downloads(), before);
    yard.offer("7", &made, "forced", "forced", None);
    yard.ddi.poll().await;
    assert!(yard.device.has(&made));
    assert_eq!(yard.device.shelf().chunks, made.chunks.len());
    yard.judged(&made, Standing::Committed);
    yard.ddi.poll().await;
    assert_eq!(
        yard.told(),
        [
            "/deploymentBase/7 download none",
            "/deploymentBase/7 downloaded none",
            "/deploymentBase/7 proceeding none",
            "/deploymentBase/7 closed success",
        ]
    );
}

#[tokio::test]
async fn a_closed_maintenance_window_is_waited_for() {
    let mut yard = Yard::new().await;
    let made = usual(1);
    yard.offer("7", &made, "attempt", "attempt", Some("unavailable"));
    yard.ddi.poll().await;
    assert!(yard.device.shelf().finished.is_empty());
    yard.offer("7", &made, "attempt", "attempt", Some("available"));
    yard.ddi.poll().await;
    assert!(yard.device.has(&made));
}

#[tokio::test]
async fn what_may_not_be_downloaded_yet_is_not() {
    let mut yard = Yard::new().await;
    let made = usual(1);
    yard.offer("7", &made, "skip", "skip", None);
    yard.ddi.poll().await;
    assert_eq!((yard.downloads(), yard.told().len()), (0, 0));
    yard.offer("7", &made, "attempt", "attempt", None);
    yard.ddi.poll().await;
    assert!(yard.device.has(&made));
}

#[tokio::test]
async fn a_power_cut_in_the_trial_loses_no_feedback_and_doubles_none() {
    let mut yard = Yard::new().await;
    let made = usual(1);
    yard.offer("7", &made, "forced", "forced", None);
    yard.ddi.poll().await;
    let mut yard = yard.restarted();
    yard.ddi.poll().await;
    let mut yard = yard.restarted();
    yard.judged(&made, Standing::Returned(refused("crash", About::Bundle)));
    yard.ddi.poll().await;
    let mut yard = yard.restarted();
    yard.ddi.poll().await;
    assert_eq!(
        yard.told(),
        [
            "/deploymentBase/7 download none",
            "/deploymentBase/7 downloaded none",
            "/deploymentBase/7 proceeding none",
            "/deploymentBase/7 closed failure",
        ]
    );
    assert_eq!(yard.device.shelf().opened, 1);
}

#[tokio::test]
async fn a_power_cut_between_the_last_chunk_and_our_note_of_it_is_found_by_the_device() {
    let mut yard = Yard::new().await;
    let made = usual(1);
    yard.offer("7", &made, "forced", "forced", None);
    yard.ddi.poll().await;
    // As if the file had been written last before the trial began.
    let path = yard.folder.path().join("hawkbit.json");
    let mut memory: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    memory["action"]["phase"] = json!("download");
    std::fs::write(&path, memory.to_string()).unwrap();
    yard.judged(&made, Standing::Refused(refused("golden", About::Bundle)));
    let mut yard = yard.restarted();
    yard.ddi.poll().await;
    assert_eq!(yard.told().last().unwrap(), "/deploymentBase/7 closed failure");
    assert_eq!(yard.device.shelf().opened, 1);
}

#[tokio::test]
async fn feedback_that_was_not_acknowledged_is_told_again_and_only_that() {
    let mut yard = Yard::new().await;
    let made = usual(1);
    yard.offer("7", &made, "forced", "forced", None);
    yard.fleet().feedback = vec![200, 503];
    yard.ddi.poll().await;
    yard.ddi.poll().await;
    yard.judged(&made, Standing::Committed);
    yard.fleet().feedback = vec![500, 503];
    let mut yard = yard;
    for _ in 0..2 {
        yard.ddi.poll().await;
        yard = yard.restarted();
    }
    yard.ddi.poll().await;
    yard.ddi.poll().await;
    let told = yard.told();
    let count = |what: &str| told.iter().filter(|t| t.contains(what)).count();
    assert_eq!(
        [count("download none"), count("downloaded"), count("proceeding"), count("closed")],
        [1, 2, 1, 3]
    );
}

#[tokio::test]
async fn an_action_the_server_has_closed_needs_no_feedback() {
    for status in [404, 410, 400] {
        let mut yard = Yard::new().await;
        let made = usual(1);
        yard.offer("7", &made, "forced", "forced", None);
        yard.ddi.poll().await;
        yard.judged(&made, Standing::Committed);
        yard.fleet().feedback = vec![status];
        yard.fleet().deployment = None;
        yard.ddi.poll().await;
        yard.ddi.poll().await;
        assert_eq!(yard.told().iter().filter(|t| t.contains("closed")).count(), 1);
    }
}

#[tokio::test]
async fn an_action_that_is_offered_again_after_its_end_is_told_and_not_done() {
    let mut yard = Yard::new().await;
    let made = usual(1);
    yard.offer("7", &made, "forced", "forced", None);
    yard.device.shelf().refuse_begin = Some(refused("target", About::Bundle));
    yard.ddi.poll().await;
    let mut yard = yard.restarted();
    yard.device.shelf().refuse_begin = None;
    yard.offer("7", &made, "forced", "forced", None);
    yard.ddi.poll().await;
    assert_eq!(yard.told().iter().filter(|t| t.ends_with("closed failure")).count(), 2);
    assert_eq!(yard.device.shelf().opened, 1);
    // Another action with the same bundle is another try.
    yard.offer("8", &made, "forced", "forced", None);
    yard.ddi.poll().await;
    assert!(yard.device.has(&made));
}

#[tokio::test]
async fn a_bad_line_leaves_the_action_open_and_is_told_once() {
    let mut yard = Yard::new().await;
    let made = usual(1);
    yard.offer("7", &made, "forced", "forced", None);
    yard.fleet().cut = Some(0);
    for _ in 0..4 {
        yard.ddi.poll().await;
        assert_eq!(yard.ddi.view().borrow().problem.as_ref().unwrap().0, "cut");
    }
    assert_eq!(yard.told(), ["/deploymentBase/7 download none", "/deploymentBase/7 proceeding none"]);
    assert_eq!(yard.details()[1], "code: cut");
    yard.fleet().cut = None;
    yard.ddi.poll().await;
    assert!(yard.device.has(&made));
    assert_eq!(yard.ddi.view().borrow().problem, None);
}

#[tokio::test]
async fn a_distribution_without_one_bundle_is_a_failure_with_its_reason() {
    for (artifacts, code) in [
        (json!([]), "no-bundle"),
        (json!([{ "filename": "a.imb" }, { "filename": "b.imb" }]), "several-bundles"),
        (
            json!([{ "filename": "a.imb", "_links": { "download": { "href": "https://x/a" } } }]),
            "https-unsupported",
        ),
    ] {
        let mut yard = Yard::new().await;
        let plan =
            json!({ "download": "forced", "update": "forced", "chunks": [{ "artifacts": artifacts }] });
        yard.fleet().deployment = Some(json!({ "id": "7", "deployment": plan }));
        yard.ddi.poll().await;
        assert_eq!(yard.told(), ["/deploymentBase/7 closed failure"]);
        assert_eq!(yard.details()[1], format!("code: {code}"));
    }
}

#[tokio::test]
async fn an_artifact_with_another_digest_is_a_failure() {
    let mut yard = Yard::new().await;
    yard.offer("7", &usual(1), "forced", "forced", None);
    yard.fleet().content = usual(2).bytes.to_vec();
    yard.ddi.poll().await;
    assert_eq!(yard.told().last().unwrap(), "/deploymentBase/7 closed failure");
    assert_eq!(yard.details()[1], "code: wrong-digest");
    assert!(yard.device.shelf().finished.is_empty());
}

#[tokio::test]
async fn what_was_not_begun_or_waits_can_be_cancelled() {
    let mut yard = Yard::new().await;
    let made = usual(1);
    yard.offer("7", &made, "forced", "skip", None);
    yard.ddi.poll().await;
    yard.fleet().cancel = Some(json!({ "id": "20", "cancelAction": { "stopId": "7" } }));
    yard.ddi.poll().await;
    assert_eq!(yard.told().last().unwrap(), "/cancelAction/20 closed success");
    assert_eq!(yard.ddi.view().borrow().action, None);
    // One this device has never seen.
    yard.fleet().cancel = Some(json!({ "id": "21", "cancelAction": { "stopId": "99" } }));
    yard.ddi.poll().await;
    assert_eq!(yard.told().last().unwrap(), "/cancelAction/21 closed success");
    assert!(yard.device.shelf().finished.is_empty());
}

#[tokio::test]
async fn a_download_can_be_cancelled_while_it_runs() {
    let mut yard = Yard::new().await;
    yard.offer("7", &usual(1), "forced", "forced", None);
    yard.fleet().stall = true;
    yard.fleet().cancel = None;
    let fleet = yard.fleet.clone();
    let log = yard.server.log.clone();
    // As soon as the artifact is asked for, the operator changes his mind.
    let operator = tokio::spawn(async move {
        while !log.lock().unwrap().iter().any(|asked| asked.path == "/artifact.imb") {
            tokio::task::yield_now().await;
        }
        fleet.lock().unwrap().cancel = Some(json!({ "id": "20", "cancelAction": { "stopId": "7" } }));
    });
    yard.ddi.poll().await;
    operator.await.unwrap();
    assert_eq!(yard.told(), ["/deploymentBase/7 download none", "/cancelAction/20 closed success"]);
    assert_eq!(yard.ddi.view().borrow().action, None);
}

#[tokio::test]
async fn a_trial_cannot_be_cancelled_and_says_so_once() {
    let mut yard = Yard::new().await;
    let made = usual(1);
    yard.offer("7", &made, "forced", "forced", None);
    yard.ddi.poll().await;
    yard.fleet().cancel = Some(json!({ "id": "20", "cancelAction": { "stopId": "7" } }));
    yard.ddi.poll().await;
    let mut yard = yard.restarted();
    yard.ddi.poll().await;
    assert_eq!(yard.told().iter().filter(|t| *t == "/cancelAction/20 rejected none").count(), 1);
    yard.judged(&made, Standing::Committed);
    yard.ddi.poll().await;
    assert!(yard.told().contains(&"/deploymentBase/7 closed success".to_owned()));
}

#[tokio::test]
async fn an_action_the_server_dropped_is_dropped() {
    let mut yard = Yard::new().await;
    yard.offer("7", &usual(1), "forced", "skip", None);
    yard.ddi.poll().await;
    assert_eq!(yard.ddi.view().borrow().phase, Some("held"));
    yard.fleet().deployment = None;
    yard.ddi.poll().await;
    assert_eq!(yard.ddi.view().borrow().phase, None);
}

#[tokio::test]
async fn attributes_are_sent_when_the_server_wants_them() {
    let mut yard = Yard::new().await;
    yard.fleet().config = true;
    yard.ddi.poll().await;
    yard.ddi.poll().await;
    let sent: Vec<Asked> = yard.server.asked().into_iter().filter(|asked| asked.method == "PUT").collect();
    assert_eq!(sent.len(), 1);
    assert_eq!(sent[0].json(), json!({ "mode": "replace", "data": { "board": "qemu-x86_64" } }));
}

#[tokio::test]
async fn the_device_agrees_only_if_it_was_told_to() {
    for confirm in [false, true] {
        let mut yard = Yard::with(|config| config.confirm = confirm).await;
        yard.fleet().confirmation = true;
        yard.ddi.poll().await;
        let asked = yard.server.asked();
        let agreed = asked.iter().find(|asked| asked.path.ends_with("/confirmationBase/9/feedback"));
        assert_eq!(agreed.is_some(), confirm);
        if let Some(agreed) = agreed {
            assert_eq!(agreed.json()["confirmation"], "confirmed");
        }
    }
}

#[tokio::test]
async fn the_server_says_how_often_it_wants_to_be_asked_within_reason() {
    for (said, seconds) in
        [("00:10:00", 600), ("00:00:00", 5), ("999:00:00", 86_400), ("soon", 300), ("00:00:61", 300)]
    {
        let mut yard = Yard::new().await;
        yard.fleet().sleep = Some(said);
        // The chance of the tests' clock is in the middle.
        assert_eq!(yard.ddi.poll().await, Duration::from_secs(seconds), "{said}");
    }
}

#[tokio::test]
async fn a_server_that_is_away_or_wrong_is_asked_less_and_less() {
    let page = Answer::new(200, "<html>").with("content-type", "text/html");
    for (broken, code) in [
        (Answer::new(500, ""), "server-busy"),
        (Answer::new(401, ""), "unauthorized"),
        (page, "bad-document"),
        (Answer::new(200, "{\"_links\":{\"deploymentBase\":7}}"), "bad-document"),
        (Answer::new(200, "[".repeat(1 << 16)), "bad-document"),
        (Answer::new(200, " ".repeat(2 << 20)), "server-refused"),
        (Answer::new(302, "").with("location", "https://fleet.example/"), "https-unsupported"),
        (Answer::new(200, "{}").with("content-encoding", "gzip"), "content-encoded"),
    ] {
        let mut yard = Yard::new().await;
        yard.fleet().broken = Some(broken);
        let mut pauses = Vec::new();
        for _ in 0..9 {
            pauses.push(yard.ddi.poll().await);
            assert_eq!(yard.ddi.view().borrow().problem.as_ref().unwrap().0, code);
        }
        assert!(pauses.is_sorted() && pauses[0] < pauses[3], "{pauses:?}");
        assert!(*pauses.last().unwrap() <= Duration::from_secs(900));
        yard.fleet().broken = None;
        assert_eq!(yard.ddi.poll().await, Duration::from_secs(300));
        assert_eq!(yard.ddi.view().borrow().failures, 0);
    }
}

#[tokio::test]
async fn the_token_is_not_shown_and_stays_with_its_server() {
    let yard = Yard::new().await;
    let shown = format!("{:?}", config(&yard.server, yard.folder.path()));
    assert!(!shown.contains("secret"), "{shown}");
    let mut yard = yard;
    let made = usual(1);
    yard.offer("7", &made, "forced", "forced", None);
    let content = made.bytes.clone();
    let store = Server::new(move |asked| file(asked, &content, "\"1\"")).await;
    let href = json!({ "href": store.url("/m.imb") });
    yard.fleet().deployment.as_mut().unwrap()["deployment"]["chunks"][0]["artifacts"][0]["_links"]["download-http"] =
        href;
    yard.ddi.poll().await;
    assert!(yard.device.has(&made));
    assert!(store.asked().iter().all(|asked| asked.header("authorization").is_none()));
}

#[tokio::test]
async fn a_configuration_that_cannot_work_is_refused() {
    let yard = Yard::new().await;
    let with = |change: &dyn Fn(&mut DdiConfig)| {
        let mut config = config(&yard.server, yard.folder.path());
        change(&mut config);
        Ddi::new(config, Arc::new(Double::default()), Fast::new()).err()
    };
    assert!(matches!(
        with(&|c| c.controller = "a/b".into()),
        Some(ConfigError::Name { what: "controller", .. })
    ));
    assert!(matches!(with(&|c| c.controller = "..".into()), Some(ConfigError::Name { .. })));
    assert!(matches!(with(&|c| c.tenant = String::new()), Some(ConfigError::Name { what: "tenant", .. })));
    assert!(matches!(with(&|c| c.server = "https://fleet".into()), Some(ConfigError::Server(_))));
    assert_eq!(with(&|c| c.security = Security::GatewayToken("a\nb".into())), Some(ConfigError::Token));
    assert_eq!(with(&|c| c.security = Security::None), None);
}

/// The memory lies on a medium that is busy: a pipe that nobody reads. The runtime has one thread, as the daemon's.
#[tokio::test]
async fn a_medium_that_takes_its_time_keeps_no_other_task_waiting() {
    let mut yard = Yard::new().await;
    yard.offer("7", &usual(1), "forced", "forced", None);
    let pipe = yard.folder.path().join("hawkbit.json.new");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let (others_ran, waited_for) = std::sync::mpsc::channel();
    let medium = std::thread::spawn(move || {
        let in_time = waited_for.recv_timeout(Duration::from_secs(10)).is_ok();
        let mut kept = Vec::new();
        std::io::Read::read_to_end(&mut std::fs::File::open(pipe).unwrap(), &mut kept).unwrap();
        (in_time, kept)
    });
    let other = async {
        while yard.server.asked().iter().all(|asked| !asked.path.contains("/deploymentBase/7")) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        // The document was read, so what it says is being kept.
        tokio::time::sleep(Duration::from_millis(50)).await;
        others_ran.send(()).unwrap();
    };
    tokio::select! {
        biased;
        _ = yard.ddi.poll() => panic!("it went on before its memory was kept"),
        () = other => {}
    }
    let (in_time, kept) = medium.join().unwrap();
    assert!(in_time, "everything else stood still");
    assert!(String::from_utf8(kept).unwrap().contains("\"id\":\"7\""));
}

//! The device's hawkBit client against a mock server that others wrote: `hawkbit_mock`, whose expectations compare whole
//! documents. It serves files without ranges.
#![allow(clippy::unwrap_used)]

#[path = "../../../app/fetch/tests/common/mod.rs"]
mod common;

use common::*;
use hawkbit::ddi::{ClientAuthorization, ConfirmationResponse, Execution, Finished, MaintenanceWindow, Type};
use hawkbit_mock::ddi::{ChunkProtocol, Deployment, DeploymentBuilder, ServerBuilder, TargetAuthorization};
use inferd_fetch::ddi::{Ddi, DdiConfig, Security};
use inferd_fetch::{About, Limits, Standing};
use serde_json::json;
use std::path::Path;
use std::sync::Arc;

fn client(
    server: &str,
    auth: &ClientAuthorization,
    folder: &Path,
    device: &Double,
    confirm: bool,
) -> Ddi<Double> {
    let config = DdiConfig {
        server: server.to_owned(),
        tenant: "DEFAULT".into(),
        controller: "dev-1".into(),
        security: match auth {
            ClientAuthorization::None => Security::None,
            ClientAuthorization::TargetToken(token) => Security::TargetToken(token.clone()),
            ClientAuthorization::GatewayToken(token) => Security::GatewayToken(token.clone()),
        },
        memory: folder.join("hawkbit"),
        confirm,
        limits: Limits::default(),
    };
    Ddi::new(config, Arc::new(device.clone()), Fast::new()).unwrap()
}

fn deployment(folder: &Path, made: &Made, update: Type) -> DeploymentBuilder {
    let path = folder.join("m.imb");
    std::fs::write(&path, &made.bytes[..]).unwrap();
    let sha256 = made.sha256();
    let artifact = (path, "md5", "sha1", sha256.as_str());
    DeploymentBuilder::new("10", Type::Forced, update).chunk(
        ChunkProtocol::HTTP,
        "bApp",
        "1",
        "m",
        vec![artifact],
    )
}

fn built(folder: &Path, made: &Made, update: Type) -> Deployment {
    deployment(folder, made, update).build()
}

#[tokio::test]
async fn an_update_goes_from_offer_to_success_with_every_kind_of_token() {
    for auth in
        [TargetAuthorization::None, TargetAuthorization::TargetToken, TargetAuthorization::GatewayToken]
    {
        let folder = tempfile::tempdir().unwrap();
        let server = ServerBuilder::default().target_authorization(auth).build();
        let target = server.add_target("dev-1");
        let (device, made) = (Double::default(), usual(1));
        let committed = format!("committed: bundle {}", made.id());
        let mut ddi = client(&server.base_url(), &target.client_auth, folder.path(), &device, false);
        target.push_deployment(built(folder.path(), &made, Type::Forced));
        let none = Finished::None;
        let expect = |execution, finished, details| {
            target.expect_deployment_feedback("10", execution, finished, None, details)
        };
        let told = [
            expect(Execution::Download, none, vec!["fetching the bundle"]),
            expect(Execution::Downloaded, Finished::None, vec!["stored"]),
            expect(Execution::Proceeding, Finished::None, vec!["on trial"]),
            expect(Execution::Closed, Finished::Success, vec![committed.as_str()]),
        ];
        ddi.poll().await;
        assert!(device.has(&made));
        device.shelf().standings.insert(made.id(), Standing::Committed);
        ddi.poll().await;
        let [before @ .., closed] = &told;
        for mock in before {
            mock.assert_calls(1);
        }
        // The mock goes on offering what was closed; whoever asks again is told again.
        assert!((1..=2).contains(&closed.calls()), "{}", closed.calls());
    }
}

#[tokio::test]
async fn a_refusal_closes_the_action_with_our_verdict() {
    let folder = tempfile::tempdir().unwrap();
    let server = ServerBuilder::default().build();
    let target = server.add_target("dev-1");
    let device = Double::default();
    device.shelf().refuse_begin = Some(refused("below-floor", About::Bundle));
    target.push_deployment(built(folder.path(), &usual(1), Type::Attempt));
    let details = vec!["refused: below-floor", "code: below-floor"];
    let told = target.expect_deployment_feedback("10", Execution::Closed, Finished::Failure, None, details);
    client(&server.base_url(), &target.client_auth, folder.path(), &device, false).poll().await;
    told.assert_calls(1);
}

#[tokio::test]
async fn a_closed_window_holds_the_bundle_back() {
    let folder = tempfile::tempdir().unwrap();
    let server = ServerBuilder::default().build();
    let target = server.add_target("dev-1");
    let (device, made) = (Double::default(), usual(1));
    let mut ddi = client(&server.base_url(), &target.client_auth, folder.path(), &device, false);
    let held =
        deployment(folder.path(), &made, Type::Attempt).maintenance_window(MaintenanceWindow::Unavailable);
    target.push_deployment(held.build());
    let details = vec!["stored, waiting for the window"];
    let told = target.expect_deployment_feedback("10", Execution::Downloaded, Finished::None, None, details);
    ddi.poll().await;
    ddi.poll().await;
    told.assert_calls(1);
    assert!(device.shelf().finished.is_empty());
    let open =
        deployment(folder.path(), &made, Type::Attempt).maintenance_window(MaintenanceWindow::Available);
    target.push_deployment(open.build());
    ddi.poll().await;
    assert!(device.has(&made));
}

#[tokio::test]
async fn attributes_are_sent_in_the_servers_form() {
    let folder = tempfile::tempdir().unwrap();
    let server = ServerBuilder::default().build();
    let target = server.add_target("dev-1");
    target.request_config(json!({ "mode": "replace", "data": { "board": "qemu-x86_64" } }));
    client(&server.base_url(), &target.client_auth, folder.path(), &Double::default(), false).poll().await;
    assert_eq!(target.config_data_hits(), 1);
}

#[tokio::test]
async fn a_wish_to_cancel_is_answered() {
    let folder = tempfile::tempdir().unwrap();
    let server = ServerBuilder::default().build();
    let target = server.add_target("dev-1");
    target.cancel_action("10");
    let details = vec!["nothing of it was begun"];
    let told = target.expect_cancel_feedback("10", Execution::Closed, Finished::Success, details);
    client(&server.base_url(), &target.client_auth, folder.path(), &Double::default(), false).poll().await;
    assert_eq!(target.cancel_action_hits(), 1);
    told.assert_calls(1);
}

#[tokio::test]
async fn an_agreement_is_given_where_the_configuration_agrees() {
    for confirm in [true, false] {
        let folder = tempfile::tempdir().unwrap();
        let server = ServerBuilder::default().build();
        let target = server.add_target("dev-1");
        let asked = deployment(folder.path(), &usual(1), Type::Forced).confirmation_required(true).build();
        target.push_deployment(asked);
        let told =
            target.expect_confirmation_feedback("10", Some(1), ConfirmationResponse::Confirmed, vec![]);
        let device = Double::default();
        client(&server.base_url(), &target.client_auth, folder.path(), &device, confirm).poll().await;
        told.assert_calls(usize::from(confirm));
    }
}

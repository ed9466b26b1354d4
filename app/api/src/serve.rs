//! Sockets to requests, replies to sockets.

use crate::App;
use std::{future::Future, sync::Arc};
use tokio::net::TcpListener;

/// Serves until `shutdown` completes, then lets requests in flight end.
pub async fn serve(_app: Arc<App>, _listeners: Vec<TcpListener>, shutdown: impl Future<Output = ()>) {
    shutdown.await;
}

//! `/openapi.json` and the page that shows it. Both are part of the binary: an appliance may never see the internet.

use crate::{App, Reply};
use bytes::Bytes;
use hyper::StatusCode;
use hyper::header::{self, HeaderValue};

pub(crate) const OPENAPI: &[u8] = include_bytes!("../assets/openapi.json");
pub(crate) const PAGE: &[u8] = include_bytes!("../assets/docs.html");

/// The page runs its own script and reads only from where it came.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

pub(crate) fn openapi(app: &App) -> Reply {
    if !app.config.docs {
        return Reply::not_found();
    }
    Reply::json_bytes(StatusCode::OK, Bytes::from_static(OPENAPI))
}

pub(crate) fn page(app: &App) -> Reply {
    if !app.config.docs {
        return Reply::not_found();
    }
    Reply::new(StatusCode::OK, "text/html; charset=utf-8", Bytes::from_static(PAGE))
        .with(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY))
}

pub(crate) fn redoc(app: &App) -> Reply {
    if !app.config.docs {
        return Reply::not_found();
    }
    Reply::new(StatusCode::TEMPORARY_REDIRECT, "text/plain; charset=utf-8", Bytes::new())
        .with(header::LOCATION, HeaderValue::from_static("/docs"))
}

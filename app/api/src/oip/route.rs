//! Paths under `/v2`.

use hyper::Method;

/// What a path names. Names are decoded, and may be of no model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// `/v2`
    Server,
    /// `/v2/health/live`
    Live,
    /// `/v2/health/ready`
    Ready,
    /// `/v2/models`
    Models,
    /// `/v2/models/stats`
    AllStatistics,
    /// `/v2/models/{m}[/versions/{v}]...`
    Model {
        /// The model's name.
        name: String,
        /// The version, where the path has one.
        version: Option<String>,
        /// What is wanted of it.
        what: OfModel,
    },
    /// `/v2/repository/index`
    Index,
    /// `/v2/repository/models/{m}/load`
    Load(String),
    /// `/v2/repository/models/{m}/unload`
    Unload(String),
    /// A door of Triton's that this server does not have, and what it would be.
    Unsupported(&'static str),
}

/// What is wanted of one model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OfModel {
    /// Its metadata.
    Metadata,
    /// Whether it is ready.
    Ready,
    /// Its configuration.
    Config,
    /// Its statistics.
    Statistics,
    /// An inference.
    Infer,
}

/// Why a path leads nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoRoute {
    /// There is nothing of that name.
    NotFound,
    /// `%` in it is not followed by two hex digits, or the text is not UTF-8.
    Encoding,
}

impl Route {
    /// The route of a path that begins with `/v2`. Each segment is decoded by itself, so an encoded slash never makes a
    /// segment more; a name is only ever looked up in a table, never in a file system.
    ///
    /// # Errors
    /// [`NoRoute`].
    pub fn of(path: &str) -> Result<Self, NoRoute> {
        let rest = path.strip_prefix("/v2").ok_or(NoRoute::NotFound)?;
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        if rest.is_empty() {
            return Ok(Self::Server);
        }
        let rest = rest.strip_prefix('/').ok_or(NoRoute::NotFound)?;
        // The longest known path has 6 segments; the seventh says that there are too many.
        let segments: Vec<String> = rest.split('/').take(7).map(decode).collect::<Result<_, _>>()?;
        let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
        if segments.contains(&"") {
            return Err(NoRoute::NotFound);
        }
        Ok(match &segments[..] {
            ["health", "live"] => Self::Live,
            ["health", "ready"] => Self::Ready,
            ["models"] => Self::Models,
            ["models", "stats"] => Self::AllStatistics,
            ["models", name, "versions", version, tail @ ..] => model(name, Some(version), tail)?,
            ["models", name, tail @ ..] => model(name, None, tail)?,
            ["repository", "index"] => Self::Index,
            ["repository", "models", name, "load"] => Self::Load((*name).to_owned()),
            ["repository", "models", name, "unload"] => Self::Unload((*name).to_owned()),
            ["systemsharedmemory" | "cudasharedmemory", ..] => Self::Unsupported("shared memory"),
            ["trace", "setting"] => Self::Unsupported("tracing"),
            ["logging"] => Self::Unsupported("log settings"),
            _ => return Err(NoRoute::NotFound),
        })
    }

    /// The methods a route answers, for `Allow`; `None` where any gets the same answer.
    #[must_use]
    pub fn allow(&self) -> Option<&'static str> {
        match self {
            Self::Model { what: OfModel::Infer, .. } | Self::Index | Self::Load(_) | Self::Unload(_) => {
                Some("POST")
            }
            Self::Unsupported(_) => None,
            _ => Some("GET, HEAD"),
        }
    }

    /// Whether the route answers this method.
    #[must_use]
    pub fn allows(&self, method: &Method) -> bool {
        self.allow().is_none_or(|list| list.split(", ").any(|m| m == method.as_str()))
    }
}

fn model(name: &str, version: Option<&&str>, tail: &[&str]) -> Result<Route, NoRoute> {
    let what = match tail {
        [] => OfModel::Metadata,
        ["ready"] => OfModel::Ready,
        ["config"] => OfModel::Config,
        ["stats"] => OfModel::Statistics,
        ["infer"] => OfModel::Infer,
        ["generate" | "generate_stream"] => return Ok(Route::Unsupported("text generation")),
        ["trace", "setting"] => return Ok(Route::Unsupported("tracing")),
        _ => return Err(NoRoute::NotFound),
    };
    Ok(Route::Model { name: name.to_owned(), version: version.map(|v| (*v).to_owned()), what })
}

/// Decodes `%XX`.
fn decode(segment: &str) -> Result<String, NoRoute> {
    if !segment.contains('%') {
        return Ok(segment.to_owned());
    }
    let mut out = Vec::with_capacity(segment.len());
    let mut bytes = segment.bytes();
    while let Some(b) = bytes.next() {
        if b != b'%' {
            out.push(b);
            continue;
        }
        let mut digit = || bytes.next().and_then(|d| char::from(d).to_digit(16)).ok_or(NoRoute::Encoding);
        let value = digit()? * 16 + digit()?;
        out.push(u8::try_from(value).map_err(|_| NoRoute::Encoding)?);
    }
    String::from_utf8(out).map_err(|_| NoRoute::Encoding)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_model(name: &str, version: Option<&str>, what: OfModel) -> Result<Route, NoRoute> {
        Ok(Route::Model { name: name.into(), version: version.map(Into::into), what })
    }

    #[test]
    fn every_path_of_the_protocol_has_its_route() {
        assert_eq!(Route::of("/v2"), Ok(Route::Server));
        assert_eq!(Route::of("/v2/"), Ok(Route::Server));
        assert_eq!(Route::of("/v2/health/live"), Ok(Route::Live));
        assert_eq!(Route::of("/v2/health/ready"), Ok(Route::Ready));
        assert_eq!(Route::of("/v2/models/stats"), Ok(Route::AllStatistics));
        assert_eq!(Route::of("/v2/repository/index"), Ok(Route::Index));
        assert_eq!(Route::of("/v2/repository/models/a%2Fb/load"), Ok(Route::Load("a/b".into())));
        assert_eq!(Route::of("/v2/repository/models/m/unload"), Ok(Route::Unload("m".into())));
        for (tail, what) in [
            ("", OfModel::Metadata),
            ("/ready", OfModel::Ready),
            ("/config", OfModel::Config),
            ("/stats", OfModel::Statistics),
            ("/infer", OfModel::Infer),
        ] {
            assert_eq!(Route::of(&format!("/v2/models/m{tail}")), of_model("m", None, what));
            assert_eq!(
                Route::of(&format!("/v2/models/m/versions/1.2{tail}")),
                of_model("m", Some("1.2"), what)
            );
        }
        assert_eq!(Route::of("/v2/models/versions/infer"), of_model("versions", None, OfModel::Infer));
        for path in [
            "/v2/systemsharedmemory/status",
            "/v2/cudasharedmemory/region/r/register",
            "/v2/trace/setting",
            "/v2/models/m/trace/setting",
            "/v2/logging",
            "/v2/models/m/generate",
            "/v2/models/m/versions/1/generate_stream",
        ] {
            assert!(matches!(Route::of(path), Ok(Route::Unsupported(_))), "{path}");
        }
    }

    #[test]
    fn everything_else_leads_nowhere() {
        for path in [
            "/v2x",
            "/v2/x",
            "/v2//",
            "/v2/models//infer",
            "/v2/models/a/b/infer",
            "/v2/models/m/versions/1/2/infer",
            "/v2/models/m/infer/infer",
            "/v2/health",
            "/v2/health/dead",
            "/v2/repository/r/index",
            "/v2/models/m/INFER",
            "/v2/repository/models/../load",
            "/V2",
            "/v2/models/m/versions",
        ] {
            // `..` is a name like any other: it is looked up, and no model can be called so.
            let dots = path.contains("..");
            assert_eq!(Route::of(path).is_err(), !dots, "{path}: {:?}", Route::of(path));
        }
        for path in [
            "/v2/models/%/ready",
            "/v2/models/%4/ready",
            "/v2/models/%zz/ready",
            "/v2/models/%ff/ready",
            "/v2/models/%+1",
        ] {
            assert_eq!(Route::of(path), Err(NoRoute::Encoding), "{path}");
        }
        assert_eq!(Route::of("/v2/models/%c3%a4%00%2e%2e%2f"), of_model("ä\0../", None, OfModel::Metadata));
    }

    #[test]
    fn a_route_answers_its_methods() {
        let infer = Route::of("/v2/models/m/infer").unwrap();
        assert!(infer.allows(&Method::POST) && !infer.allows(&Method::GET));
        assert!(Route::Server.allows(&Method::HEAD) && !Route::Server.allows(&Method::POST));
        assert!(Route::Unsupported("x").allows(&Method::DELETE));
    }
}
